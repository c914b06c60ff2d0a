//! Where to draw the nodes of a graph without cycles: in layers, each node below all it depends on.
//!
//! Layers are longest paths; a source is moved down to just above its first reader. An edge over several layers bends
//! at a point in each. Within layers, nodes are ordered by where their neighbours are, sweep by sweep, and the order
//! with the fewest crossings is kept. Then every node goes as near to its neighbours as the order allows, which is
//! isotonic regression, exact and in a few lines.

/// A node to be placed.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Size {
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

/// A drawing.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Drawing {
    /// Centre of each node.
    pub nodes: Vec<(f64, f64)>,
    /// Points of each edge, from the lower side of its source to the upper side of its target.
    pub edges: Vec<Vec<(f64, f64)>>,
    /// Width of everything.
    pub width: f64,
    /// Height of everything.
    pub height: f64,
}

const GAP: f64 = 18.0;
const LAYER_GAP: f64 = 30.0;
const SWEEPS: usize = 12;

/// Places nodes, of which each edge's source has a smaller number than its target.
pub fn layers(sizes: &[Size], edges: &[(usize, usize)]) -> Drawing {
    if sizes.is_empty() {
        return Drawing::default();
    }
    let layer = assign(sizes.len(), edges);
    let mut grid = Grid::new(sizes, edges, &layer);
    grid.order();
    grid.place();
    grid.drawing(sizes, edges)
}

/// The layer of each node.
fn assign(n: usize, edges: &[(usize, usize)]) -> Vec<usize> {
    let mut layer = vec![0; n];
    let mut sorted = edges.to_vec();
    sorted.sort_unstable_by_key(|e| e.1);
    for (from, to) in &sorted {
        layer[*to] = layer[*to].max(layer[*from] + 1);
    }
    for node in 0..n {
        if !edges.iter().any(|e| e.1 == node)
            && let Some(first) = edges.iter().filter(|e| e.0 == node).map(|e| layer[e.1]).min()
        {
            layer[node] = first - 1;
        }
    }
    layer
}

/// Nodes and bends by layer.
struct Grid {
    /// By layer, what stands there in order: numbers into the vectors below.
    rows: Vec<Vec<usize>>,
    width: Vec<f64>,
    /// Neighbours one layer up and one layer down.
    up: Vec<Vec<usize>>,
    down: Vec<Vec<usize>>,
    x: Vec<f64>,
    /// By edge, its bends.
    bends: Vec<Vec<usize>>,
}

impl Grid {
    fn new(sizes: &[Size], edges: &[(usize, usize)], layer: &[usize]) -> Grid {
        let n = sizes.len();
        let mut grid = Grid {
            rows: vec![Vec::new(); layer.iter().max().map_or(0, |m| m + 1)],
            width: sizes.iter().map(|s| s.width).collect(),
            up: vec![Vec::new(); n],
            down: vec![Vec::new(); n],
            x: Vec::new(),
            bends: Vec::new(),
        };
        for (node, at) in layer.iter().enumerate() {
            grid.rows[*at].push(node);
        }
        for (from, to) in edges {
            let (mut last, mut bends) = (*from, Vec::new());
            for row in layer[*from] + 1..layer[*to] {
                let bend = grid.width.len();
                grid.width.push(4.0);
                grid.up.push(Vec::new());
                grid.down.push(Vec::new());
                grid.rows[row].push(bend);
                grid.join(last, bend);
                bends.push(bend);
                last = bend;
            }
            grid.join(last, *to);
            grid.bends.push(bends);
        }
        grid.x = vec![0.0; grid.width.len()];
        grid
    }

    fn join(&mut self, above: usize, below: usize) {
        self.down[above].push(below);
        self.up[below].push(above);
    }

    /// Positions within the layers.
    fn positions(&self) -> Vec<usize> {
        let mut at = vec![0; self.width.len()];
        self.rows.iter().flat_map(|row| row.iter().enumerate()).for_each(|(i, n)| at[*n] = i);
        at
    }

    fn crossings(&self) -> usize {
        let at = self.positions();
        let between = |row: &Vec<usize>| {
            let mut ends: Vec<(usize, usize)> =
                row.iter().flat_map(|n| self.down[*n].iter().map(|m| (at[*n], at[*m]))).collect();
            ends.sort_unstable();
            (0..ends.len()).map(|i| ends[..i].iter().filter(|e| e.1 > ends[i].1).count()).sum::<usize>()
        };
        self.rows.iter().map(between).sum()
    }

    fn order(&mut self) {
        let mut best = (self.crossings(), self.rows.clone());
        for sweep in 0..SWEEPS {
            let down = sweep % 2 == 0;
            let order: Vec<usize> = if down {
                (1..self.rows.len()).collect()
            } else {
                (0..self.rows.len().saturating_sub(1)).rev().collect()
            };
            for row in order {
                let at = self.positions();
                let neighbours = if down { &self.up } else { &self.down };
                let middle = |n: usize| {
                    let all = &neighbours[n];
                    let sum: usize = all.iter().map(|m| at[*m]).sum();
                    if all.is_empty() { at[n] as f64 } else { sum as f64 / all.len() as f64 }
                };
                let mut nodes = self.rows[row].clone();
                nodes.sort_by(|a, b| middle(*a).total_cmp(&middle(*b)).then(at[*a].cmp(&at[*b])));
                self.rows[row] = nodes;
            }
            let crossings = self.crossings();
            if crossings < best.0 {
                best = (crossings, self.rows.clone());
            }
        }
        self.rows = best.1;
    }

    fn place(&mut self) {
        for row in &self.rows {
            let mut x = 0.0;
            for n in row {
                self.x[*n] = x + self.width[*n] / 2.0;
                x += self.width[*n] + GAP;
            }
        }
        for sweep in 0..SWEEPS {
            let rows: Vec<usize> =
                if sweep % 2 == 0 { (0..self.rows.len()).collect() } else { (0..self.rows.len()).rev().collect() };
            for row in rows {
                self.settle(row);
            }
        }
    }

    /// Moves the nodes of a row as near as possible to the middle of their neighbours, in the row's order.
    fn settle(&mut self, row: usize) {
        let nodes = self.rows[row].clone();
        // Distance of each node from the first, packed; what is left is a monotone sequence.
        let mut packed = Vec::with_capacity(nodes.len());
        let mut x = 0.0;
        for (i, n) in nodes.iter().enumerate() {
            if i > 0 {
                x += (self.width[nodes[i - 1]] + self.width[*n]) / 2.0 + GAP;
            }
            packed.push(x);
        }
        // Blocks of nodes that stand tight together: sum of wishes, weight.
        let mut blocks: Vec<(f64, f64, usize)> = Vec::new();
        for (n, packed) in nodes.iter().zip(&packed) {
            let all = self.up[*n].iter().chain(&self.down[*n]);
            let (sum, count) = all.fold((0.0, 0.0), |(s, c), m| (s + self.x[*m], c + 1.0));
            let (wish, weight) = if count > 0.0 { (sum / count, count) } else { (self.x[*n], 0.1) };
            blocks.push(((wish - packed) * weight, weight, 1));
            while let [.., a, b] = blocks.as_slice()
                && a.0 / a.1 > b.0 / b.1
            {
                let merged = (a.0 + b.0, a.1 + b.1, a.2 + b.2);
                blocks.truncate(blocks.len() - 2);
                blocks.push(merged);
            }
        }
        let places = blocks.iter().flat_map(|(sum, weight, n)| std::iter::repeat_n(sum / weight, *n));
        for ((n, packed), place) in nodes.iter().zip(packed).zip(places) {
            self.x[*n] = place + packed;
        }
    }

    fn drawing(self, sizes: &[Size], edges: &[(usize, usize)]) -> Drawing {
        let left = self.x.iter().zip(&self.width).map(|(x, w)| x - w / 2.0).fold(f64::INFINITY, f64::min) - GAP;
        let right = self.x.iter().zip(&self.width).map(|(x, w)| x + w / 2.0).fold(f64::NEG_INFINITY, f64::max) + GAP;
        let mut centre = vec![(0.0, 0.0); self.width.len()];
        let mut y = GAP;
        for row in &self.rows {
            let tall = row.iter().filter_map(|n| sizes.get(*n)).map(|s| s.height).fold(8.0, f64::max);
            for n in row {
                centre[*n] = (self.x[*n] - left, y + tall / 2.0);
            }
            y += tall + LAYER_GAP;
        }
        let line = |((from, to), bends): (&(usize, usize), &Vec<usize>)| {
            let (a, b) = (centre[*from], centre[*to]);
            let mut points = vec![(a.0, a.1 + sizes[*from].height / 2.0)];
            points.extend(bends.iter().map(|n| centre[*n]));
            points.push((b.0, b.1 - sizes[*to].height / 2.0));
            points
        };
        let drawn = edges.iter().zip(&self.bends).map(line).collect();
        centre.truncate(sizes.len());
        Drawing { nodes: centre, edges: drawn, width: right - left, height: y - LAYER_GAP + GAP }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squares(n: usize) -> Vec<Size> {
        vec![Size { width: 40.0, height: 20.0 }; n]
    }

    fn overlap(d: &Drawing, sizes: &[Size]) -> bool {
        (0..sizes.len()).any(|i| {
            (0..i).any(|j| {
                let ((ax, ay), (bx, by)) = (d.nodes[i], d.nodes[j]);
                (ax - bx).abs() < (sizes[i].width + sizes[j].width) / 2.0 - 0.01
                    && (ay - by).abs() < (sizes[i].height + sizes[j].height) / 2.0
            })
        })
    }

    #[test]
    fn readers_stand_below_what_they_read() {
        let edges = [(0, 2), (1, 2), (2, 3), (0, 4), (3, 4)];
        let d = layers(&squares(5), &edges);
        for (a, b) in edges {
            assert!(d.nodes[a].1 < d.nodes[b].1, "{a} {b}: {d:?}");
        }
        assert!(!overlap(&d, &squares(5)));
        // The long edge bends once per layer it passes.
        assert_eq!(d.edges[3].len(), 4);
    }

    #[test]
    fn a_chain_is_straight() {
        let d = layers(&squares(4), &[(0, 1), (1, 2), (2, 3)]);
        assert!(d.nodes.windows(2).all(|w| (w[0].0 - w[1].0).abs() < 0.01), "{d:?}");
    }

    #[test]
    fn an_order_without_crossings_is_found() {
        // Two pairs whose natural order crosses.
        let sizes = squares(4);
        let d = layers(&sizes, &[(0, 3), (1, 2)]);
        assert_eq!(d.nodes[0].0 < d.nodes[1].0, d.nodes[3].0 < d.nodes[2].0);
    }

    #[test]
    fn nothing_overlaps_in_a_tangle() {
        let n = 40;
        let sizes: Vec<Size> = (0..n).map(|i| Size { width: 30.0 + (i * 7 % 50) as f64, height: 20.0 }).collect();
        let edges: Vec<(usize, usize)> =
            (1..n).flat_map(|i| [(i * 7 % i, i), (i * 5 % i, i)]).filter(|(a, b)| a < b).collect();
        let d = layers(&sizes, &edges);
        assert!(!overlap(&d, &sizes));
        assert!(d.nodes.iter().all(|(x, y)| *x > 0.0 && *y > 0.0 && *x < d.width && *y < d.height));
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert_eq!(layers(&[], &[]), Drawing::default());
    }
}
