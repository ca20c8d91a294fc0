-- Split-half stability of experts: the Jaccard similarity of a concept's experts from the two halves of its
-- sentences, averaged over concepts. Concepts with experts in neither half are left out.
-- Reads: first_experts, second_experts (like experts), thresholds(threshold).
WITH sizes AS (
    SELECT pooling, concept, threshold, count(*) AS n
    FROM (FROM first_experts UNION ALL FROM second_experts) JOIN thresholds ON ap > threshold
    GROUP BY ALL
),
shared AS (
    SELECT a.pooling, a.concept, threshold, count(*) AS n
    FROM first_experts a JOIN second_experts b USING (pooling, concept, layer, site, unit)
    JOIN thresholds ON least(a.ap, b.ap) > threshold
    GROUP BY ALL
)
SELECT
    pooling, threshold,
    -- a fixed order makes the mean reproducible to the last bit
    avg(coalesce(shared.n, 0) / (sizes.n - coalesce(shared.n, 0)) ORDER BY concept) AS stability
FROM sizes LEFT JOIN shared USING (pooling, concept, threshold)
GROUP BY ALL
