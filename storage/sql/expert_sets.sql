-- The experts of each concept at one threshold and pooling, as numbers of concepts and of neurons.
-- Reads: scored(pooling, concept, layer, site, unit, ap), concepts(concept, number).
SELECT number, (dense_rank() OVER (ORDER BY layer, site, unit) - 1)::BIGINT AS neuron
FROM scored JOIN concepts USING (concept)
WHERE pooling = $pooling AND ap > $threshold
