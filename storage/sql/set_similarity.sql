-- Similarities of two concepts' expert sets, one row per measure, from the sizes of the sets and of their
-- intersection. Null where the denominator is 0.
-- Reads: shared(concept_a, concept_b, n_a, n_b, n_shared, ...), where concept_a sorts before concept_b;
--        measures(measure).
-- Containment is the share of concept_a's experts that are also concept_b's. It is asymmetric, so it has a
-- row for each order of the two concepts.
WITH both_orders AS (
    SELECT *, measure FROM shared CROSS JOIN measures
    UNION ALL
    SELECT
        * REPLACE (concept_b AS concept_a, concept_a AS concept_b, n_b AS n_a, n_a AS n_b), measure
    FROM shared JOIN measures ON measure = 'containment'
)
SELECT
    *,
    n_shared / nullif(
        CASE measure
            WHEN 'jaccard' THEN n_a + n_b - n_shared
            WHEN 'overlap' THEN least(n_a, n_b)
            WHEN 'dice' THEN (n_a + n_b) / 2
            WHEN 'containment' THEN n_a
        END,
        0
    ) AS similarity
FROM both_orders
