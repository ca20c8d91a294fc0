-- When: the checkpoints of a model (revisions named by a step, such as step512) in the order of training,
-- with how well their experts agree with people, how many there are, and how many of a concept's were
-- its experts at the checkpoint before.
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
found AS (
    SELECT run, pooling, concept, threshold, count(*) AS n
    FROM experts JOIN thresholds ON ap > threshold
    GROUP BY ALL
),
-- a concept without experts counts as 0
counted AS (
    SELECT model, revision, concept_set, r.run, r.pooling, threshold, median(coalesce(n, 0)) AS n_experts
    FROM (SELECT DISTINCT model, revision, concept_set, run, pooling FROM experts) r
    CROSS JOIN thresholds
    JOIN (SELECT DISTINCT concept_set, concept FROM concepts) USING (concept_set)
    LEFT JOIN found USING (run, pooling, concept, threshold)
    GROUP BY ALL
),
kept AS (
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
FROM counted c
JOIN steps s USING (model, revision, concept_set)
LEFT JOIN kept k
    ON k.pooling = c.pooling AND k.threshold = c.threshold
    AND least(revision, revision_before) = k.revision_a
    AND greatest(revision, revision_before) = k.revision_b
    AND c.run = CASE WHEN revision = k.revision_a THEN k.run_a ELSE k.run_b END
LEFT JOIN (FROM alignment WHERE representation = 'experts' AND layer IS NULL AND site IS NULL) a
    ON (a.model, a.revision, a.concept_set, a.pooling, a.threshold)
     = (c.model, c.revision, c.concept_set, c.pooling, c.threshold)
ORDER BY c.model, step, c.pooling, c.threshold, a.human_set
