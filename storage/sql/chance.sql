-- The number of experts of each concept, and the number expected by chance, from permuted labels; and the
-- same for the highest AP. p counts the true labels as one of the permutations.
-- Reads: chance_counts.
WITH steps AS (
    SELECT *, unnest(range(len(n_above))) AS step, unnest(n_above) AS n FROM chance_counts
),
totals AS (
    SELECT
        model, revision, concept_set, pooling, concept, step / 20 AS threshold, shuffle, run,
        sum(n)::BIGINT AS n,
        max(best_ap) AS best
    FROM steps
    GROUP BY ALL
)
SELECT
    a.model, a.revision, a.concept_set, a.pooling, a.concept, a.threshold,
    a.n AS n_experts,
    avg(b.n) AS chance_mean,
    quantile_cont(b.n, 0.95) AS chance_p95,
    (1 + count(*) FILTER (WHERE b.n >= a.n)) / (1 + count(*)) AS p,
    a.best AS best_ap,
    -- a fixed order makes the mean reproducible to the last bit
    avg(b.best ORDER BY b.shuffle) AS best_chance_mean,
    quantile_cont(b.best, 0.95) AS best_chance_p95,
    (1 + count(*) FILTER (WHERE b.best >= a.best)) / (1 + count(*)) AS best_p,
    count(*) AS shuffles,
    a.run
FROM totals a JOIN totals b USING (run, pooling, concept, threshold)
WHERE a.shuffle = 0 AND b.shuffle > 0
GROUP BY ALL
ORDER BY a.model, a.revision, a.pooling, a.threshold, a.concept, a.run
