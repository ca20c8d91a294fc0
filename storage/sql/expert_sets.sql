-- The experts of each concept at one pooling, as numbers of concepts and of neurons: those with an AP above
-- $threshold or, where that is null, the $top highest. Equal APs go by the neuron's place, as in
-- ranked.sql.
-- Reads: scored(pooling, concept, layer, site, unit, ap), concepts(concept, number).
WITH ranked AS (
    SELECT *, row_number() OVER (PARTITION BY concept ORDER BY ap DESC, layer, site, unit) AS rank
    FROM scored
    WHERE pooling = $pooling
)
SELECT number, (dense_rank() OVER (ORDER BY layer, site, unit) - 1)::BIGINT AS neuron
FROM ranked JOIN concepts USING (concept)
WHERE coalesce(ap > $threshold::DOUBLE, rank <= $top::BIGINT)
