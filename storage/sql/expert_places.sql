-- Where experts sit: how many a layer and site has at each threshold, and their share of all.
-- Reads: experts, similarity (for its thresholds). A run of the stage `experts` is one model's.
WITH thresholds AS (
    SELECT DISTINCT threshold FROM similarity WHERE threshold IS NOT NULL
),
counted AS (
    SELECT model, revision, concept_set, pooling, threshold, layer, site, run, count(*) AS n_experts
    FROM experts JOIN thresholds ON ap > threshold
    GROUP BY ALL
)
SELECT
    *,
    n_experts / sum(n_experts) OVER (PARTITION BY run, pooling, threshold) AS share
FROM counted
ORDER BY model, revision, pooling, threshold, layer, site
