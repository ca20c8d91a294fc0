-- How many experts each two concepts have, and share, in each scope and at each cut.
-- Reads: scored(pooling, layer, site, number, neuron, strength): the neurons that may be experts of the
--        concept of that number; layer and site are those of the scope, null where it goes over all;
--        cuts(cut, least, threshold, top): a neuron is an expert at a cut when its strength is above
--        `least`; the cuts count from 1, with a rising `least`;
--        concepts(concept, number), numbered in the order of their names; scopes(pooling, layer, site).
-- A neuron is an expert of both concepts at just the cuts up to the lower of its two highest ones, so the
-- pairs are joined once and counted by that cut; the counts at a cut are then sums over the cuts from it on.
-- The join and its counts are on numbers packed into one: scope and neuron; scope, both concepts and cut.
WITH scoped AS (
    SELECT *, row_number() OVER (ORDER BY pooling, layer, site)::UBIGINT AS scope FROM scopes
),
experts AS MATERIALIZED (
    SELECT
        (scope << 32) | neuron AS place,
        number,
        len(list_filter((SELECT list(least) FROM cuts), lambda each: strength > each))::UTINYINT AS highest
    FROM scored
    JOIN scoped
        ON scored.pooling = scoped.pooling
        AND scored.layer IS NOT DISTINCT FROM scoped.layer
        AND scored.site IS NOT DISTINCT FROM scoped.site
    WHERE strength > (SELECT min(least) FROM cuts)
),
sizes AS (
    SELECT scope, cut, number, sum(n)::BIGINT AS n
    FROM (SELECT place >> 32 AS scope, number, highest, count(*) AS n FROM experts GROUP BY ALL)
    JOIN cuts ON highest >= cut
    GROUP BY ALL
),
pairs AS (
    SELECT
        ((a.place >> 32) << 40) | (a.number::UBIGINT << 24) | (b.number::UBIGINT << 8)
            -- faster than least()
            | (CASE WHEN a.highest < b.highest THEN a.highest ELSE b.highest END)::UBIGINT AS pair,
        count(*) AS n
    FROM experts a JOIN experts b ON a.place = b.place AND a.number < b.number
    GROUP BY pair
),
shared AS (
    SELECT
        pair >> 40 AS scope,
        cut,
        (pair >> 24) & 65535 AS a,
        (pair >> 8) & 65535 AS b,
        sum(n)::BIGINT AS n
    FROM pairs JOIN cuts ON (pair & 255) >= cut
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
CROSS JOIN concepts a JOIN concepts b ON a.number < b.number
LEFT JOIN sizes na ON (na.scope, na.cut, na.number) = (s.scope, c.cut, a.number)
LEFT JOIN sizes nb ON (nb.scope, nb.cut, nb.number) = (s.scope, c.cut, b.number)
LEFT JOIN shared ON (shared.scope, shared.cut, shared.a, shared.b) = (s.scope, c.cut, a.number, b.number)
