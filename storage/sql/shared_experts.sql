-- The number of experts of two concepts, and the number they share, for every pair and scope. Experts are
-- the candidates with a strength above $min_strength; $threshold and $top become columns.
-- Reads: candidates (the result of scoped_experts.sql or ranked_experts.sql), concepts (of
--        concept_numbers.sql), scopes (of scopes.sql).
-- `a.pair_offset + b.number` numbers scopes and pairs without gaps. The column statistics, which a
-- materialized CTE would lack, give DuckDB the range, so it counts in an array instead of a hash table.
WITH experts AS NOT MATERIALIZED (
    SELECT * FROM candidates WHERE strength > $min_strength
),
counts AS (
    SELECT a.pair_offset + b.number AS pair, count(*) AS n
    FROM experts a JOIN experts b ON a.neuron = b.neuron AND a.number <= b.number
    GROUP BY pair
),
sizes AS (
    -- a concept shares all its experts with itself
    SELECT s.*, c.concept, c.number, s.pair_offset + c.pair_offset AS first_pair, coalesce(n, 0) AS n
    FROM scopes s CROSS JOIN concepts c
    LEFT JOIN counts ON pair = s.pair_offset + c.pair_offset + c.number
)
SELECT
    a.pooling, a.layer, a.site,
    $threshold::DOUBLE AS threshold,
    $top::BIGINT AS top,
    a.concept AS concept_a,
    b.concept AS concept_b,
    a.n AS n_a,
    b.n AS n_b,
    coalesce(counts.n, 0) AS n_shared
FROM sizes a JOIN sizes b ON a.pair_offset = b.pair_offset AND a.number < b.number
LEFT JOIN counts ON pair = a.first_pair + b.number
