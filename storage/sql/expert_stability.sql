-- Stability of experts over revisions: the Jaccard similarity of a concept's experts in two revisions of a
-- model. Concepts with experts in neither are left out.
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
runs AS (
    SELECT DISTINCT model, concept_set, pooling, revision, run FROM experts
),
concepts_of_pairs AS (
    SELECT DISTINCT
        model, concept_set, pooling, concept, threshold,
        a.revision AS revision_a, b.revision AS revision_b, a.run AS run_a, b.run AS run_b
    FROM runs a
    JOIN runs b USING (model, concept_set, pooling)
    JOIN (SELECT model, concept_set, pooling, concept, threshold, run FROM sizes) n
        USING (model, concept_set, pooling)
    WHERE a.revision < b.revision AND n.run IN (a.run, b.run)
),
shared AS (
    SELECT run_a, run_b, pooling, concept, threshold, count(*) AS n
    FROM matches JOIN thresholds ON ap > threshold
    GROUP BY ALL
)
-- a concept with experts in only one of the two revisions has stability 0
SELECT
    p.model, p.concept_set, p.pooling, p.concept, p.threshold, revision_a, revision_b,
    coalesce(a.n, 0) AS n_a, coalesce(b.n, 0) AS n_b, coalesce(s.n, 0) AS n_shared,
    coalesce(s.n, 0) / (coalesce(a.n, 0) + coalesce(b.n, 0) - coalesce(s.n, 0)) AS stability,
    p.run_a, p.run_b
FROM concepts_of_pairs p
LEFT JOIN sizes a ON (a.run, a.pooling, a.concept, a.threshold) = (run_a, p.pooling, p.concept, p.threshold)
LEFT JOIN sizes b ON (b.run, b.pooling, b.concept, b.threshold) = (run_b, p.pooling, p.concept, p.threshold)
LEFT JOIN shared s
    ON (s.run_a, s.run_b, s.pooling, s.concept, s.threshold)
     = (p.run_a, p.run_b, p.pooling, p.concept, p.threshold)
ORDER BY p.model, revision_a, revision_b, p.pooling, p.threshold, p.concept
