-- The judged concepts that every representation has.
-- Reads: similarity, judged(concept).
WITH sources AS (
    SELECT DISTINCT (representation, model, revision, concept_set) AS source, concept_a, concept_b
    FROM similarity
),
source_concepts AS (
    SELECT DISTINCT source, unnest([concept_a, concept_b]) AS concept FROM sources
)
SELECT concept
FROM source_concepts SEMI JOIN judged USING (concept)
GROUP BY concept
HAVING count(*) = (SELECT count(DISTINCT source) FROM sources)
ORDER BY concept
