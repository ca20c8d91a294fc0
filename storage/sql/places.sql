-- Where experts are: the layers' sites at each pooling, with the number of the first neuron of each, so that
-- `first + unit` numbers the neurons.
-- Reads: experts(pooling, layer, site, unit).
SELECT pooling, layer, site, (sum(width) OVER (ORDER BY pooling, layer, site) - width)::UINTEGER AS first
FROM (SELECT pooling, layer, site, max(unit) + 1 AS width FROM experts GROUP BY ALL)
