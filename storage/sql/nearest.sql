-- The concepts that are most like each concept, in the model and to people: the $count highest of each that
-- are above nothing at all. Equal values go by the name.
-- Reads: shown (the result of compared_pairs.sql); $concept is one concept, or null for all.
WITH both_ways AS (
    SELECT concept_a AS concept, concept_b AS other, similarity, score FROM shown
    UNION ALL
    SELECT concept_b, concept_a, similarity, score FROM shown
),
known AS (
    SELECT 'model' AS source, concept, other, similarity AS value FROM both_ways WHERE similarity > 0
    UNION ALL
    SELECT 'people', concept, other, score FROM both_ways WHERE score IS NOT NULL
)
SELECT source, concept, other, value
FROM known
WHERE $concept IS NULL OR concept = $concept
QUALIFY row_number() OVER (PARTITION BY source, concept ORDER BY value DESC, other) <= $count
ORDER BY source, concept, value DESC, other
