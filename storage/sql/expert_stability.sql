-- Stability of experts over revisions: the Jaccard similarity of a concept's experts in two revisions of a
-- model.
-- Reads: experts, similarity (for its thresholds).
WITH thresholds AS (
    SELECT DISTINCT threshold FROM similarity WHERE threshold IS NOT NULL
),
sizes AS (
    SELECT model, revision, concept_set, pooling, concept, run, threshold, count(*) AS n
    FROM experts JOIN thresholds ON ap > threshold
    GROUP BY ALL
),
matches AS (
    SELECT a.run AS run_a, b.run AS run_b, pooling, concept, least(a.ap, b.ap) AS ap
    FROM experts a JOIN experts b USING (model, concept_set, pooling, concept, layer, site, unit)
    WHERE a.revision < b.revision
),
shared AS (
    SELECT run_a, run_b, pooling, concept, threshold, count(*) AS n
    FROM matches JOIN thresholds ON ap > threshold
    GROUP BY ALL
)
SELECT
    a.model, a.concept_set, a.pooling, a.concept, a.threshold,
    a.revision AS revision_a, b.revision AS revision_b,
    a.n AS n_a, b.n AS n_b, coalesce(s.n, 0) AS n_shared,
    coalesce(s.n, 0) / (a.n + b.n - coalesce(s.n, 0)) AS stability,
    a.run AS run_a, b.run AS run_b
FROM sizes a JOIN sizes b USING (model, concept_set, pooling, concept, threshold)
LEFT JOIN shared s
    ON (s.run_a, s.run_b, s.pooling, s.concept, s.threshold)
     = (a.run, b.run, a.pooling, a.concept, a.threshold)
WHERE a.revision < b.revision
ORDER BY a.model, revision_a, revision_b, a.pooling, a.threshold, a.concept
