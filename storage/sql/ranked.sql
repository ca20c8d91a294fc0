-- As scored.sql, but with the neuron's rank in the concept as strength, negative so that the best one is the
-- strongest. Equal APs go by the neuron's number.
-- Reads: scored (the result of scored.sql).
SELECT
    * REPLACE (
        -row_number() OVER (PARTITION BY row ORDER BY strength DESC, neuron)::DOUBLE AS strength
    )
FROM scored
ORDER BY neuron, number
