-- Neurons with their AP as strength, in the scopes of one kind: $scope is model, layer or site.
-- Reads: neurons (the result of neurons.sql).
SELECT
    pooling,
    CASE WHEN $scope = 'layer' THEN layer END AS layer,
    CASE WHEN $scope = 'site' THEN site END AS site,
    number,
    neuron,
    ap AS strength
FROM neurons
