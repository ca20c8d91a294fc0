-- Checkpoints of a model (revisions named by a step, such as step512) in training order: the agreement of
-- their experts with people, the median number of experts, and their stability since the previous one.
-- Reads: experts, concepts, alignment, expert_stability, similarity (for its thresholds).
WITH thresholds AS (
    SELECT DISTINCT threshold FROM similarity WHERE threshold IS NOT NULL
),
steps AS (
    SELECT *, lag(revision) OVER (PARTITION BY model, concept_set ORDER BY step) AS revision_before
    FROM (
        SELECT DISTINCT model, revision, concept_set,
            TRY_CAST(regexp_extract(revision, 'step[-_]?(\d+)', 1) AS BIGINT) AS step
        FROM experts
    )
    WHERE step IS NOT NULL
),
sizes AS (
    SELECT run, pooling, concept, threshold, count(*) AS n
    FROM experts JOIN thresholds ON ap > threshold
    GROUP BY ALL
),
-- concepts without experts count as 0
medians AS (
    SELECT model, revision, concept_set, r.run, r.pooling, threshold, median(coalesce(n, 0)) AS n_experts
    FROM (SELECT DISTINCT model, revision, concept_set, run, pooling FROM experts) r
    CROSS JOIN thresholds
    JOIN (SELECT DISTINCT concept_set, concept FROM concepts) USING (concept_set)
    LEFT JOIN sizes USING (run, pooling, concept, threshold)
    GROUP BY ALL
),
stabilities AS (
    SELECT
        revision_a, revision_b, run_a, run_b, pooling, threshold,
        avg(stability ORDER BY concept) AS stability
    FROM expert_stability
    GROUP BY ALL
)
SELECT
    c.model, step, c.revision, c.concept_set, c.pooling, c.threshold,
    c.n_experts, revision_before, k.stability,
    a.human_set, a.agreement, a.measure, a.n_pairs, a.rho, a.ci_low, a.ci_high,
    c.run AS run_experts, a.run
FROM medians c
JOIN steps s USING (model, revision, concept_set)
LEFT JOIN stabilities k
    ON k.pooling = c.pooling AND k.threshold = c.threshold
    AND least(revision, revision_before) = k.revision_a
    AND greatest(revision, revision_before) = k.revision_b
    AND c.run = CASE WHEN revision = k.revision_a THEN k.run_a ELSE k.run_b END
LEFT JOIN (
    FROM alignment
    WHERE representation = 'experts' AND layer IS NULL AND site IS NULL AND subset = 'all'
) a
    ON (a.model, a.revision, a.concept_set, a.pooling, a.threshold)
     = (c.model, c.revision, c.concept_set, c.pooling, c.threshold)
ORDER BY c.model, step, c.pooling, c.threshold, a.human_set
