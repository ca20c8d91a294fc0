-- Families of representations: those that differ only in where and at which threshold or rank they are
-- read. Containment and divergence are left out: they are another number in each order of two concepts, and
-- neither a rating nor a tree has an order.
-- Reads: similarity (the table of that name).
SELECT representation, model, revision, concept_set, pooling, measure
FROM similarity
WHERE measure NOT IN ('containment', 'kl')
GROUP BY ALL
ORDER BY ALL
