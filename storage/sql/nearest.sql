-- The $count nearest concepts of each concept, by the model (with a similarity above 0) and by people. Ties
-- are broken by name.
-- Reads: view_pairs (the result of view_pairs.sql); $concept is one concept, or null for all.
WITH both_orders AS (
    SELECT concept_a AS concept, concept_b AS other, similarity, score FROM view_pairs
    UNION ALL
    SELECT concept_b, concept_a, similarity, score FROM view_pairs
),
candidates AS (
    SELECT 'model' AS source, concept, other, similarity AS value FROM both_orders WHERE similarity > 0
    UNION ALL
    SELECT 'people', concept, other, score FROM both_orders WHERE score IS NOT NULL
)
SELECT source, concept, other, value
FROM candidates
WHERE $concept IS NULL OR concept = $concept
QUALIFY row_number() OVER (PARTITION BY source, concept ORDER BY value DESC, other) <= $count
ORDER BY source, concept, value DESC, other
