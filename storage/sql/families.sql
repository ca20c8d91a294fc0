-- Families of representations: those that differ only in where and at which threshold they are read.
-- Reads: similarity (the table of that name).
SELECT representation, model, revision, concept_set, pooling, measure
FROM similarity
GROUP BY ALL
ORDER BY ALL
