-- How many experts each two concepts have, and share, in each scope. Experts are the neurons stronger than
-- $least; $threshold and $top go into the columns of these names.
-- Reads: scored (the result of scored.sql or ranked.sql), concepts (that of numbered.sql), scopes (that of
--        scopes.sql).
-- `a.row + b.number` numbers scopes and pairs without a gap, and the columns' statistics, which a materialised
-- CTE would not have, tell DuckDB how far it goes: it then counts in an array instead of a hash table.
WITH experts AS NOT MATERIALIZED (
    SELECT * FROM scored WHERE strength > $least
),
counts AS (
    SELECT a.row + b.number AS pair, count(*) AS n
    FROM experts a JOIN experts b ON a.neuron = b.neuron AND a.number <= b.number
    GROUP BY pair
),
sizes AS (
    -- a concept shares all its experts with itself
    SELECT s.*, c.concept, c.number, s.row + c.row AS first_pair, coalesce(n, 0) AS n
    FROM scopes s CROSS JOIN concepts c LEFT JOIN counts ON pair = s.row + c.row + c.number
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
FROM sizes a JOIN sizes b ON a.row = b.row AND a.number < b.number
LEFT JOIN counts ON pair = a.first_pair + b.number
