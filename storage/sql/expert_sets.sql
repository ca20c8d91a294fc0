-- Expert sets at one pooling, as (concept number, neuron number): neurons with an AP above $threshold or,
-- if that is null, the $top highest. Ties are broken as in ranked_experts.sql.
-- Reads: experts(pooling, concept, layer, site, unit, ap), concepts(concept, number).
WITH ranked AS (
    SELECT *, row_number() OVER (PARTITION BY concept ORDER BY ap DESC, layer, site, unit) AS rank
    FROM experts
    WHERE pooling = $pooling
)
SELECT number, (dense_rank() OVER (ORDER BY layer, site, unit) - 1)::BIGINT AS neuron
FROM ranked JOIN concepts USING (concept)
WHERE coalesce(ap > $threshold::DOUBLE, rank <= $top::BIGINT)
