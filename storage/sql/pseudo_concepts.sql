-- Number of experts and best AP of each pseudo-concept and of its concept. Concepts without experts count as
-- 0; the best AP is null if none is above the floor.
-- Reads: concept_experts, pseudo_experts (like experts), poolings(pooling), thresholds(threshold),
-- words(concept, word, n_positives).
WITH scores AS (
    SELECT pooling, concept, false AS is_pseudo, ap FROM concept_experts
    UNION ALL
    SELECT pooling, concept, true, ap FROM pseudo_experts
)
SELECT
    pooling, concept, threshold, word, n_positives,
    count(*) FILTER (is_pseudo AND ap > threshold) AS n_experts,
    max(ap) FILTER (is_pseudo) AS best_ap,
    count(*) FILTER (NOT is_pseudo AND ap > threshold) AS concept_n_experts,
    max(ap) FILTER (NOT is_pseudo) AS concept_best_ap
FROM words CROSS JOIN poolings CROSS JOIN thresholds LEFT JOIN scores USING (pooling, concept)
GROUP BY ALL
ORDER BY pooling, concept, threshold
