-- Every pair of concepts with its similarity in one representation of the whole model and, if the pair was
-- rated, its human score.
-- Reads: similarity, human_pairs, both filtered by parameters.
SELECT concept_a, concept_b, similarity, score
FROM similarity
LEFT JOIN (
    SELECT concept_a, concept_b, score FROM human_pairs WHERE human_set IS NOT DISTINCT FROM $human_set
) USING (concept_a, concept_b)
WHERE (representation, model, revision, concept_set, measure)
    = ($representation, $model, $revision, $concept_set, $measure)
    AND pooling IS NOT DISTINCT FROM $pooling
    AND threshold IS NOT DISTINCT FROM $threshold
    AND top IS NOT DISTINCT FROM $top
    AND layer IS NULL
    AND site IS NULL
