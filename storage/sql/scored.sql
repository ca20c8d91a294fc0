-- The neurons that may be experts of a concept in a scope, with their AP as strength. They are in the order of
-- the neurons: the concepts of one neuron are then joined from memory that is near.
-- Reads: experts(pooling, concept, layer, site, unit, ap), concepts (the result of numbered.sql),
--        places (that of places.sql), scopes (that of scopes.sql).
SELECT
    scopes.row + concepts.row AS row,
    number,
    (first + unit)::UINTEGER AS neuron,
    ap AS strength
FROM experts
JOIN concepts USING (concept)
JOIN places USING (pooling, layer, site)
JOIN scopes
    ON scopes.pooling = places.pooling
    AND coalesce(scopes.layer = places.layer, true)
    AND coalesce(scopes.site = places.site, true)
ORDER BY neuron, number
