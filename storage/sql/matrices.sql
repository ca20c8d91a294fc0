-- Similarities of all pairs of common concepts, sorted by name, for every representation of a family. An
-- undefined similarity (of two concepts without experts) counts as 0, so that all representations are
-- compared on the same pairs.
-- Reads: similarity, filtered by parameters, and common(concept).
SELECT
    representation, model, revision, concept_set, pooling, layer, site, measure, threshold, top,
    list(coalesce(similarity, 0) ORDER BY concept_a, concept_b) AS similarities,
    list(similarity IS NULL ORDER BY concept_a, concept_b) AS undefined
FROM similarity
WHERE (representation, model, concept_set, measure) = ($representation, $model, $concept_set, $measure)
    AND revision IS NOT DISTINCT FROM $revision
    AND pooling IS NOT DISTINCT FROM $pooling
    AND concept_a IN (FROM common)
    AND concept_b IN (FROM common)
GROUP BY ALL
ORDER BY layer NULLS FIRST, site NULLS FIRST, threshold, top
