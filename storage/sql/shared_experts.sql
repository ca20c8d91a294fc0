-- How many experts each two concepts have, and share, in each scope and at each cut.
-- Reads: scored(pooling, layer, site, concept, neuron, strength): the neurons that may be experts; layer
--        and site are those of the scope, null where it goes over all, and neuron is a number within it;
--        cuts(cut, least, threshold, top): a neuron is an expert at a cut when its strength is above `least`; the cuts
--        count from 1, with a rising `least`;
--        concepts(concept), scopes(pooling, layer, site).
-- A neuron is an expert of both concepts at just the cuts up to the lower of its two highest ones, so the
-- pairs are joined once and counted by that cut; the counts at a cut are then sums over the cuts from it on.
-- All of the join is on small integers.
WITH numbered AS (
    SELECT concept, row_number() OVER (ORDER BY concept)::USMALLINT AS number FROM concepts
),
scoped AS (
    SELECT *, row_number() OVER (ORDER BY pooling, layer, site)::USMALLINT AS scope FROM scopes
),
experts AS MATERIALIZED (
    SELECT
        scope,
        neuron::UINTEGER AS neuron,
        number,
        len(list_filter((SELECT list(least) FROM cuts), lambda each: strength > each))::UTINYINT AS highest
    FROM scored
    JOIN numbered USING (concept)
    JOIN scoped
        ON scored.pooling = scoped.pooling
        AND scored.layer IS NOT DISTINCT FROM scoped.layer
        AND scored.site IS NOT DISTINCT FROM scoped.site
    WHERE strength > (SELECT min(least) FROM cuts)
),
sizes AS (
    SELECT scope, cut, number, count(*) AS n
    FROM experts JOIN cuts ON highest >= cut
    GROUP BY ALL
),
pairs AS (
    SELECT a.scope, a.number AS a, b.number AS b, least(a.highest, b.highest) AS highest, count(*) AS n
    FROM experts a JOIN experts b ON a.scope = b.scope AND a.neuron = b.neuron AND a.number < b.number
    GROUP BY ALL
),
shared AS (
    SELECT scope, cut, a, b, sum(n)::BIGINT AS n
    FROM pairs JOIN cuts ON highest >= cut
    GROUP BY ALL
)
SELECT
    s.pooling, s.layer, s.site, c.threshold, c.top,
    a.concept AS concept_a,
    b.concept AS concept_b,
    coalesce(na.n, 0) AS n_a,
    coalesce(nb.n, 0) AS n_b,
    coalesce(shared.n, 0) AS n_shared
FROM scoped s CROSS JOIN cuts c
CROSS JOIN numbered a JOIN numbered b ON a.number < b.number
LEFT JOIN sizes na ON (na.scope, na.cut, na.number) = (s.scope, c.cut, a.number)
LEFT JOIN sizes nb ON (nb.scope, nb.cut, nb.number) = (s.scope, c.cut, b.number)
LEFT JOIN shared ON (shared.scope, shared.cut, shared.a, shared.b) = (s.scope, c.cut, a.number, b.number)
