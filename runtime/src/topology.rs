//! Which cores there are, and which memory is near them.
//!
//! Threads are shared out to *groups*: up to eight that take work from one place, all in one memory node. What a group
//! takes first are neighbouring parts of a grid, so that threads of a node read neighbouring weights; only threads
//! without work take that of other groups.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Threads that take pieces from one word, which costs each of them the others' cache misses.
const GROUP: usize = 8;

/// The cores that this process may use, by memory node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topology {
    nodes: Vec<Node>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Node {
    /// Cores, of which hardware threads are no more than one.
    cores: usize,
    /// All their hardware threads, as the system numbers them.
    cpus: Vec<usize>,
}

/// Threads that take work from one place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Group {
    /// Their numbers.
    pub threads: Range<usize>,
    /// The hardware threads that they stay on; none where it does not matter.
    pub cpus: Vec<usize>,
}

impl Topology {
    /// Of this machine, as far as this process may use it.
    pub fn here() -> Topology {
        let offered = std::thread::available_parallelism().map_or(1, |n| n.get());
        Topology::read(Path::new("/sys/devices/system"), &allowed(), offered)
    }

    /// From the system's description in a folder: `allowed` hardware threads, of which `offered` may run at once. What
    /// the folder does not say, or says wrongly, is one node with as many cores.
    pub fn read(system: &Path, allowed: &[usize], offered: usize) -> Topology {
        let list = |file: String| std::fs::read_to_string(system.join(file)).ok().and_then(|text| parse_list(&text));
        // The first hardware thread of a core stands for it.
        let core = |cpu: usize| {
            let siblings = list(format!("cpu/cpu{cpu}/topology/core_cpus_list"))
                .or_else(|| list(format!("cpu/cpu{cpu}/topology/thread_siblings_list")));
            siblings.and_then(|all| all.into_iter().find(|s| allowed.contains(s))).unwrap_or(cpu)
        };
        let mut of: BTreeMap<usize, usize> = BTreeMap::new();
        for node in list("node/online".into()).unwrap_or_default() {
            for cpu in list(format!("node/node{node}/cpulist")).unwrap_or_default() {
                of.entry(cpu).or_insert(node);
            }
        }
        let mut nodes: BTreeMap<usize, Node> = BTreeMap::new();
        for cpu in allowed {
            let node = nodes.entry(of.get(cpu).copied().unwrap_or(0)).or_default();
            node.cores += usize::from(core(*cpu) == *cpu);
            node.cpus.push(*cpu);
        }
        let mut nodes: Vec<Node> = nodes.into_values().filter(|n| n.cores > 0).collect();
        let cores: usize = nodes.iter().map(|n| n.cores).sum();
        let offered = offered.max(1);
        if cores == 0 {
            nodes = vec![Node { cores: offered, cpus: Vec::new() }];
        } else if offered < cores {
            // A share of the machine's time, which may be used anywhere: as many threads, spread evenly.
            let shares = shares(offered, &nodes);
            nodes.iter_mut().zip(shares).for_each(|(n, share)| n.cores = share);
            nodes.retain(|n| n.cores > 0);
        }
        Topology { nodes }
    }

    /// Cores.
    pub fn cores(&self) -> usize {
        self.nodes.iter().map(|n| n.cores).sum()
    }

    /// Memory nodes.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// So many threads in groups, shared out to nodes by their cores.
    pub(crate) fn groups(&self, threads: usize) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for (node, share) in self.nodes.iter().zip(shares(threads, &self.nodes)) {
            let parts = share.div_ceil(GROUP);
            for part in 0..parts {
                let first = groups.last().map_or(0, |g| g.threads.end);
                let count = share * (part + 1) / parts - share * part / parts;
                let cpus = if self.nodes.len() > 1 { node.cpus.clone() } else { Vec::new() };
                groups.push(Group { threads: first..first + count, cpus });
            }
        }
        groups
    }
}

/// `count` things by the nodes' cores: whole ones that differ from the exact shares by less than one.
fn shares(count: usize, nodes: &[Node]) -> Vec<usize> {
    let all: usize = nodes.iter().map(|n| n.cores).sum::<usize>().max(1);
    let mut before = 0;
    let ends = nodes.iter().map(|n| {
        before += n.cores;
        count * before / all
    });
    ends.scan(0, |start, end| Some(end - std::mem::replace(start, end))).collect()
}

/// `0-3,8,10-11` as numbers; `None` for other text, or for more numbers than any machine has.
fn parse_list(text: &str) -> Option<Vec<usize>> {
    const MOST: usize = 1 << 16;
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|p| !p.is_empty()) {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let (from, to) = (from.parse::<usize>().ok()?, to.parse::<usize>().ok()?);
        if from > to || to >= MOST || all.len() + (to - from) >= MOST {
            return None;
        }
        all.extend(from..=to);
    }
    Some(all)
}

/// The hardware threads that this process may run on.
fn allowed() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None);
    let set = set.map(|set| (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect());
    set.unwrap_or_default()
}

/// Keeps the calling thread on these hardware threads. Where that is refused it runs anywhere, which is only slower.
pub(crate) fn stay_on(cpus: &[usize]) {
    let mut set = rustix::thread::CpuSet::new();
    cpus.iter().filter(|cpu| **cpu < rustix::thread::CpuSet::MAX_CPU).for_each(|cpu| set.set(*cpu));
    if !cpus.is_empty() {
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A description as the system gives it: nodes of so many cores, each with so many hardware threads, whose numbers
    /// are as far apart as servers have them.
    fn describe(nodes: &[usize], threads: usize) -> (tempfile::TempDir, Vec<usize>) {
        let folder = tempfile::tempdir().unwrap();
        let write = |file: String, text: String| {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text + "\n").unwrap();
        };
        let cores: usize = nodes.iter().sum();
        write("node/online".into(), format!("0-{}", nodes.len() - 1));
        let mut first = 0;
        for (i, n) in nodes.iter().enumerate() {
            let lists: Vec<String> =
                (0..threads).map(|t| format!("{}-{}", t * cores + first, t * cores + first + n - 1)).collect();
            write(format!("node/node{i}/cpulist"), lists.join(","));
            first += n;
        }
        for cpu in 0..cores * threads {
            let siblings: Vec<String> = (0..threads).map(|t| (cpu % cores + t * cores).to_string()).collect();
            write(format!("cpu/cpu{cpu}/topology/core_cpus_list"), siblings.join(","));
        }
        (folder, (0..cores * threads).collect())
    }

    /// Nodes of so many cores.
    pub(crate) fn fake(nodes: &[usize]) -> Topology {
        let (folder, all) = describe(nodes, 1);
        Topology::read(folder.path(), &all, all.len())
    }

    fn sizes(t: &Topology, threads: usize) -> Vec<usize> {
        t.groups(threads).iter().map(|g| g.threads.len()).collect()
    }

    #[test]
    fn hardware_threads_of_a_core_count_once() {
        let (folder, all) = describe(&[24, 24], 2);
        let t = Topology::read(folder.path(), &all, 96);
        assert_eq!((t.cores(), t.nodes()), (48, 2));
        let groups = t.groups(48);
        assert_eq!(sizes(&t, 48), [8; 6]);
        assert_eq!((groups[2].threads.clone(), groups[3].threads.clone()), (16..24, 24..32));
        // Both threads of the node's cores.
        let expected: Vec<usize> = (24..48).chain(72..96).collect();
        assert_eq!(groups[3].cpus, expected);
    }

    #[test]
    fn what_is_allowed_is_what_counts() {
        let (folder, _) = describe(&[4, 4], 2);
        // The second hardware threads of three cores, and both of another.
        let t = Topology::read(folder.path(), &[8, 9, 10, 4, 12], 5);
        assert_eq!((t.cores(), t.nodes()), (4, 2));
        assert_eq!(sizes(&t, 4), [3, 1]);
        let one = Topology::read(folder.path(), &[1, 9], 2);
        assert_eq!((one.cores(), one.nodes()), (1, 1));
        assert!(one.groups(1)[0].cpus.is_empty(), "one node needs no place");
        // A share of the processors' time.
        let t = Topology::read(folder.path(), &(0..16).collect::<Vec<_>>(), 3);
        assert_eq!((t.cores(), sizes(&t, 3)), (3, vec![1, 2]));
    }

    #[test]
    fn uneven_and_large_machines() {
        assert_eq!(sizes(&fake(&[2]), 2), [2]);
        assert_eq!(sizes(&fake(&[12, 4]), 8), [6, 2]);
        assert_eq!(sizes(&fake(&[12, 4]), 1).iter().sum::<usize>(), 1);
        assert_eq!(sizes(&fake(&[64, 64, 64, 64]), 192), [8; 24]);
        assert_eq!(sizes(&fake(&[9]), 9), [4, 5]);
        // More threads than cores.
        assert_eq!(sizes(&fake(&[2, 2]), 12), [6, 6]);
        for threads in 1..40 {
            let groups = fake(&[5, 7, 1]).groups(threads);
            assert_eq!(groups.last().unwrap().threads.end, threads);
            assert!(groups.windows(2).all(|g| g[0].threads.end == g[1].threads.start));
            assert!(groups.iter().all(|g| (1..=GROUP).contains(&g.threads.len())), "{groups:?}");
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_one_node() {
        let folder = tempfile::tempdir().unwrap();
        let t = Topology::read(folder.path(), &[0, 1, 2], 3);
        assert_eq!((t.cores(), t.nodes()), (3, 1));
        let t = Topology::read(folder.path(), &[], 2);
        assert_eq!((t.cores(), t.nodes()), (2, 1));
        std::fs::create_dir_all(folder.path().join("node")).unwrap();
        for bad in ["", "x", "3-1", "0-99999999999999999999", "0-4000000000", "-", "1-2-3", "0-65535,0-65535"] {
            std::fs::write(folder.path().join("node/online"), bad).unwrap();
            let t = Topology::read(folder.path(), &[0, 1], 2);
            assert_eq!((t.cores(), t.nodes()), (2, 1), "{bad}");
        }
        assert_eq!(parse_list("0-2,8,10-11\n"), Some(vec![0, 1, 2, 8, 10, 11]));
    }

    #[test]
    fn this_machine_has_cores() {
        let t = Topology::here();
        assert!((1..=std::thread::available_parallelism().unwrap().get()).contains(&t.cores()));
    }
}
