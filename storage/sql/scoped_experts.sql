-- Candidate experts of each concept in each scope, with AP as strength. Sorted by neuron, so that the
-- self-join on neurons reads nearby memory.
-- Reads: experts(pooling, concept, layer, site, unit, ap), concepts (the result of concept_numbers.sql),
--        sites (of sites.sql), scopes (of scopes.sql).
SELECT
    scopes.pair_offset + concepts.pair_offset AS pair_offset,
    number,
    (first_neuron + unit)::UINTEGER AS neuron,
    ap AS strength
FROM experts
JOIN concepts USING (concept)
JOIN sites USING (pooling, layer, site)
JOIN scopes
    ON scopes.pooling = sites.pooling
    AND coalesce(scopes.layer = sites.layer, true)
    AND coalesce(scopes.site = sites.site, true)
ORDER BY neuron, number
