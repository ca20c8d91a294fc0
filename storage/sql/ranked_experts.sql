-- As scoped_experts.sql, with the negative rank of the neuron within its concept as strength. Ties are broken
-- by neuron number.
-- Reads: candidates (the result of scoped_experts.sql).
SELECT
    * REPLACE (
        -row_number() OVER (PARTITION BY pair_offset ORDER BY strength DESC, neuron)::DOUBLE AS strength
    )
FROM candidates
ORDER BY neuron, number
