-- How many of a concept's experts are found on either half of its sentences: the mean over the
-- concepts of the Jaccard similarity of the two sets; a concept without experts in both halves is left out.
-- Reads: first, second (tables like experts), thresholds(threshold).
WITH sizes AS (
    SELECT pooling, concept, threshold, count(*) AS n
    FROM (FROM first UNION ALL FROM second) JOIN thresholds ON ap > threshold
    GROUP BY ALL
),
shared AS (
    SELECT a.pooling, a.concept, threshold, count(*) AS n
    FROM first a JOIN second b USING (pooling, concept, layer, site, unit)
    JOIN thresholds ON least(a.ap, b.ap) > threshold
    GROUP BY ALL
)
SELECT
    pooling, threshold,
    -- in one order, so that the same rows give the same mean to the last bit
    avg(coalesce(shared.n, 0) / (sizes.n - coalesce(shared.n, 0)) ORDER BY concept) AS stability
FROM sizes LEFT JOIN shared USING (pooling, concept, threshold)
GROUP BY ALL
