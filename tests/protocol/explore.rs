//! Explores every interleaving of a model, breadth first, so that the first violation found is one of the
//! shortest. A state is known by 128 bits of a hash: ten million states take less than a gigabyte.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use xxhash_rust::xxh3::xxh3_128;

/// A system of states and the steps between them.
pub trait Model {
    /// Everything that decides what can happen.
    type State: Clone + Hash;
    /// What happens, for the trace.
    type Step: Debug;

    /// Where it begins.
    fn first(&self) -> Self::State;
    /// All that can happen next, in an order that depends on the state alone.
    fn steps(&self, state: &Self::State) -> Vec<(Self::Step, Self::State)>;
    /// What must hold in every state.
    fn check(&self, state: &Self::State) -> Result<(), String>;
    /// What must hold where nothing more can happen.
    fn check_end(&self, state: &Self::State) -> Result<(), String>;
}

/// What was explored: all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explored {
    pub states: usize,
    /// Steps of the longest of the shortest ways to a state.
    pub depth: usize,
    /// States in which nothing more can happen.
    pub ends: usize,
}

/// A shortest way to a state in which something does not hold.
#[derive(Debug)]
pub struct Violation {
    pub what: String,
    pub trace: Vec<String>,
}

fn fingerprint(state: &impl Hash) -> u128 {
    /// All bytes at once are hashed in a fraction of the time that one after the other takes.
    struct Bytes(Vec<u8>);
    impl Hasher for Bytes {
        fn write(&mut self, bytes: &[u8]) {
            self.0.extend_from_slice(bytes);
        }
        fn write_u8(&mut self, byte: u8) {
            self.0.push(byte);
        }
        fn finish(&self) -> u64 {
            unreachable!("only the bytes are asked for")
        }
    }
    let mut bytes = Bytes(Vec::with_capacity(1024));
    state.hash(&mut bytes);
    xxh3_128(&bytes.0)
}

/// Which step led from which state to each one.
type Trail = Vec<(u32, u16)>;

/// All states that can be reached, or the first violation.
///
/// # Panics
/// If there are more than `most` states: a model that is not explored to its end proves nothing.
pub fn explore<M: Model>(model: &M, most: usize) -> Result<Explored, Violation> {
    let first = model.first();
    let mut known = HashSet::from([fingerprint(&first)]);
    let mut trail: Trail = vec![(0, 0)];
    let mut row = vec![(0, first)];
    let mut explored = Explored { states: 0, depth: 0, ends: 0 };
    loop {
        let mut next_row = Vec::new();
        for (at, state) in &row {
            let steps = model.steps(state);
            let mut checked = model.check(state);
            if steps.is_empty() {
                explored.ends += 1;
                checked = checked.and_then(|()| model.check_end(state));
            }
            checked.map_err(|what| Violation { what, trace: trace(model, &trail, *at) })?;
            for (index, (_, next)) in steps.into_iter().enumerate() {
                if known.insert(fingerprint(&next)) {
                    next_row.push((trail.len() as u32, next));
                    trail.push((*at, index as u16));
                    assert!(trail.len() <= most, "more than {most} states");
                }
            }
        }
        if next_row.is_empty() {
            return Ok(Explored { states: known.len(), ..explored });
        }
        row = next_row;
        explored.depth += 1;
    }
}

/// The steps that led to a state.
fn trace<M: Model>(model: &M, trail: &Trail, mut at: u32) -> Vec<String> {
    let mut indices = Vec::new();
    while at != 0 {
        let (before, index) = trail[at as usize];
        indices.push(index);
        at = before;
    }
    let mut state = model.first();
    let mut trace = Vec::new();
    for index in indices.into_iter().rev() {
        let (step, next) = model.steps(&state).swap_remove(index as usize);
        trace.push(format!("{step:?}"));
        state = next;
    }
    trace
}
