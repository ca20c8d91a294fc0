-- The $count neurons with the highest AP for each concept. Ties are broken by layer, site and unit.
-- Reads: experts, filtered by parameters; $concept is one concept, or null for all.
SELECT * EXCLUDE (model, revision, concept_set, pooling, run)
FROM experts
WHERE (model, revision, concept_set, pooling) = ($model, $revision, $concept_set, $pooling)
    AND ($concept IS NULL OR concept = $concept)
QUALIFY row_number() OVER (PARTITION BY concept ORDER BY ap DESC, layer, site, unit) <= $count
ORDER BY concept, ap DESC, layer, site, unit
