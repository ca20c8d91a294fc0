-- Families of representations: those that differ only in layer, site, threshold or rank. The asymmetric
-- measures (containment and divergence) are left out: human scores and trees need symmetric ones.
-- Reads: similarity.
SELECT representation, model, revision, concept_set, pooling, measure
FROM similarity
WHERE measure NOT IN ('containment', 'kl')
GROUP BY ALL
ORDER BY ALL
