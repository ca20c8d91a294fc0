-- The rated pairs of each concept on which the model and people differ most, by rank among all rated pairs: 0
-- is the most alike, 1 the least; equal values share their mean rank. A similarity that is undefined counts
-- as 0, as in the alignment.
-- Reads: shown (the result of compared_pairs.sql); $concept is one concept, or null for all.
WITH rated AS (
    SELECT concept_a, concept_b, coalesce(similarity, 0) AS similarity, score FROM shown WHERE score IS NOT NULL
),
ranked AS (
    SELECT
        *,
        rank() OVER (ORDER BY similarity DESC) + (count(*) OVER (PARTITION BY similarity) - 1) / 2 AS model,
        rank() OVER (ORDER BY score DESC) + (count(*) OVER (PARTITION BY score) - 1) / 2 AS people,
        count(*) OVER () AS n
    FROM rated
),
both_ways AS (
    SELECT concept_a AS concept, concept_b AS other, * EXCLUDE (concept_a, concept_b) FROM ranked
    UNION ALL
    SELECT concept_b, concept_a, * EXCLUDE (concept_a, concept_b) FROM ranked
)
SELECT
    concept, other, similarity, score,
    (model - 1) / nullif(n - 1, 0) AS model_rank,
    (people - 1) / nullif(n - 1, 0) AS people_rank
FROM both_ways
WHERE $concept IS NULL OR concept = $concept
QUALIFY row_number() OVER (PARTITION BY concept ORDER BY abs(model - people) DESC, other) <= $count
ORDER BY concept, abs(model - people) DESC, other
