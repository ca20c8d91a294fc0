-- The number of experts of each layer and site at each threshold, and their share of all experts.
-- Reads: experts, similarity (for its thresholds). A run of the stage `experts` is one model's.
WITH thresholds AS (
    SELECT DISTINCT threshold FROM similarity WHERE threshold IS NOT NULL
),
counts AS (
    SELECT model, revision, concept_set, pooling, threshold, layer, site, run, count(*) AS n_experts
    FROM experts JOIN thresholds ON ap > threshold
    GROUP BY ALL
)
SELECT
    *,
    n_experts / sum(n_experts) OVER (PARTITION BY run, pooling, threshold) AS share
FROM counts
ORDER BY model, revision, pooling, threshold, layer, site
