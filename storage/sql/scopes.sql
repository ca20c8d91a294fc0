-- The scopes of one kind, $scope: the model, each layer or, where there are several, each kind of site
-- that has a neuron in `neurons`.
-- Reads: neurons (the result of neurons.sql), poolings(pooling).
SELECT pooling, layer, site
FROM poolings CROSS JOIN (
    SELECT DISTINCT
        CASE WHEN $scope = 'layer' THEN layer END AS layer,
        CASE WHEN $scope = 'site' THEN site END AS site
    FROM neurons
    WHERE $scope != 'site' OR (SELECT count(DISTINCT site) FROM neurons) > 1
    UNION
    SELECT NULL, NULL WHERE $scope = 'model'
)
