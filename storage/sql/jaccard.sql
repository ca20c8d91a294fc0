-- Jaccard similarity of two concepts' experts, over the whole model, at each threshold.
-- Reads: scored(pooling, concept, layer, site, unit, ap), concepts(concept), thresholds(threshold),
--        poolings(pooling).
-- A neuron is an expert of both concepts at a threshold when the smaller of its two APs is above it,
-- so one join serves all thresholds.
WITH sizes AS (
    SELECT pooling, threshold, concept, count(*) AS n
    FROM scored JOIN thresholds ON ap > threshold
    GROUP BY ALL
),
common_neurons AS (
    SELECT a.pooling, a.concept AS concept_a, b.concept AS concept_b, least(a.ap, b.ap) AS ap
    FROM scored a JOIN scored b USING (pooling, layer, site, unit)
    WHERE a.concept < b.concept
),
shared AS (
    SELECT pooling, threshold, concept_a, concept_b, count(*) AS n
    FROM common_neurons JOIN thresholds ON ap > threshold
    GROUP BY ALL
)
SELECT
    p.pooling,
    t.threshold,
    a.concept AS concept_a,
    b.concept AS concept_b,
    coalesce(na.n, 0) AS n_a,
    coalesce(nb.n, 0) AS n_b,
    coalesce(s.n, 0) AS n_shared,
    coalesce(s.n, 0) / nullif(coalesce(na.n, 0) + coalesce(nb.n, 0) - coalesce(s.n, 0), 0) AS similarity
FROM poolings p CROSS JOIN thresholds t
CROSS JOIN concepts a JOIN concepts b ON a.concept < b.concept
LEFT JOIN sizes na ON (na.pooling, na.threshold, na.concept) = (p.pooling, t.threshold, a.concept)
LEFT JOIN sizes nb ON (nb.pooling, nb.threshold, nb.concept) = (p.pooling, t.threshold, b.concept)
LEFT JOIN shared s
    ON (s.pooling, s.threshold, s.concept_a, s.concept_b)
     = (p.pooling, t.threshold, a.concept, b.concept)
ORDER BY ALL
