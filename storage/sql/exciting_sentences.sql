-- The sentences on which some units of one site are most active, with the concepts that they are about: the
-- $count highest values of each unit.
-- The site is given by the variable `place` (model, revision, concept_set, pooling, layer, site, units), not by
-- parameters: the files of other sites then stay closed.
-- Reads: activations, sentences, memberships.
WITH highest AS (
    SELECT concept_set, unit, sentence_id, value
    FROM activations
    WHERE model = getvariable('place').model
        AND revision = getvariable('place').revision
        AND concept_set = getvariable('place').concept_set
        AND pooling = getvariable('place').pooling
        AND layer = getvariable('place').layer
        AND site = getvariable('place').site
        AND list_contains(getvariable('place').units, unit)
    QUALIFY row_number() OVER (PARTITION BY unit ORDER BY value DESC, sentence_id) <= $count
),
about AS (
    SELECT concept_set, sentence_id, list(concept ORDER BY concept) AS concepts
    FROM memberships
    WHERE role = 'positive'
    GROUP BY ALL
)
SELECT unit, sentence_id, value, text, coalesce(concepts, []) AS concepts
FROM highest
JOIN sentences USING (concept_set, sentence_id)
LEFT JOIN about USING (concept_set, sentence_id)
ORDER BY unit, value DESC, sentence_id
