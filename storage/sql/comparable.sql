-- Similarities of the concept pairs that humans rated and that every representation has,
-- one row a representation. Two concepts without any expert share none: their similarity, which is
-- undefined, counts as 0 here, so that all representations are compared on the very same pairs.
-- Containment is left out: it is another number in each order of the two, and a rating has no order.
-- Reads: similarity (the table of that name), human(concept_a, concept_b, score).
WITH rated AS (
    SELECT *, (representation, model, revision, pooling, layer, site, measure, threshold, top) AS which
    FROM similarity JOIN human USING (concept_a, concept_b)
    WHERE measure != 'containment'
),
common AS (
    SELECT concept_a, concept_b
    FROM rated
    GROUP BY concept_a, concept_b
    HAVING count(*) = (SELECT count(DISTINCT which) FROM rated)
)
SELECT
    representation, model, revision, concept_set, pooling, layer, site, measure, threshold, top,
    list(concept_a ORDER BY concept_a, concept_b) AS concepts_a,
    list(concept_b ORDER BY concept_a, concept_b) AS concepts_b,
    list(coalesce(similarity, 0) ORDER BY concept_a, concept_b) AS similarities,
    count(*) FILTER (similarity IS NULL) AS n_undefined,
    list(score ORDER BY concept_a, concept_b) AS scores
FROM rated SEMI JOIN common USING (concept_a, concept_b)
GROUP BY representation, model, revision, concept_set, pooling, layer, site, measure, threshold, top
ORDER BY representation, model, revision, concept_set, pooling, layer, site, measure, threshold, top
