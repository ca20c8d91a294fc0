-- Similarities of two concepts' experts as sets, one row a measure, from how many they have and share.
-- Reads: shared(concept_a, concept_b, n_a, n_b, n_shared, ...), where concept_a sorts before concept_b;
--        measures(measure).
-- Containment is the share of concept_a's experts that concept_b has too: it is not symmetric, so it has
-- a row for each order of the two. Where a denominator is 0 the similarity is undefined: null.
WITH both_ways AS (
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
FROM both_ways
