-- The concepts that humans judged and that every representation has.
-- Reads: similarity (the table of that name), judged(concept).
WITH sources AS (
    SELECT DISTINCT (representation, model, revision, concept_set) AS source, concept_a, concept_b
    FROM similarity
),
held AS (
    SELECT DISTINCT source, unnest([concept_a, concept_b]) AS concept FROM sources
)
SELECT concept
FROM held SEMI JOIN judged USING (concept)
GROUP BY concept
HAVING count(*) = (SELECT count(DISTINCT source) FROM sources)
ORDER BY concept
