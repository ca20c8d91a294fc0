-- Similarities of all pairs of the common concepts, in the order of their names, for each
-- representation of one family. Two concepts without any expert share none: their similarity, which is
-- undefined, counts as 0 here, so that all representations are compared on the very same pairs.
-- Reads: similarity (the table of that name), common(concept); the family is given by parameters.
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
