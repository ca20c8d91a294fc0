-- The $count rated pairs of each concept whose ranks differ most between model and people. Ranks are among
-- all rated pairs, from 0 (most similar) to 1 (least); ties share their mean rank. An undefined similarity
-- counts as 0, as in the alignment.
-- Reads: view_pairs (the result of view_pairs.sql); $concept is one concept, or null for all.
WITH rated AS (
    SELECT concept_a, concept_b, coalesce(similarity, 0) AS similarity, score
    FROM view_pairs
    WHERE score IS NOT NULL
),
ranked AS (
    SELECT
        *,
        rank() OVER (ORDER BY similarity DESC) + (count(*) OVER (PARTITION BY similarity) - 1) / 2 AS model,
        rank() OVER (ORDER BY score DESC) + (count(*) OVER (PARTITION BY score) - 1) / 2 AS people,
        count(*) OVER () AS n
    FROM rated
),
both_orders AS (
    SELECT concept_a AS concept, concept_b AS other, * EXCLUDE (concept_a, concept_b) FROM ranked
    UNION ALL
    SELECT concept_b, concept_a, * EXCLUDE (concept_a, concept_b) FROM ranked
)
SELECT
    concept, other, similarity, score,
    (model - 1) / nullif(n - 1, 0) AS model_rank,
    (people - 1) / nullif(n - 1, 0) AS people_rank
FROM both_orders
WHERE $concept IS NULL OR concept = $concept
QUALIFY row_number() OVER (PARTITION BY concept ORDER BY abs(model - people) DESC, other) <= $count
ORDER BY concept, abs(model - people) DESC, other
