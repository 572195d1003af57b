//! The cost of the pool's own bookkeeping against its size, without any network: `pool.rs` of the
//! core crate, compiled in a second time, because it is no part of the crate's interface.

use std::error::Error;
use std::hint::black_box;
use std::num::NonZeroUsize;
use std::time::Instant;

use crate::lines::say;

#[allow(dead_code, unused_qualifications, reason = "the other half of the file is not used here")]
#[path = "../../native/mesh/src/pool.rs"]
mod pool;

use pool::{Occupant, Pool, Slot};

const SIZES: [u32; 5] = [1_000, 3_000, 10_000, 30_000, 100_000];
const INSERTS: u32 = 200_000;
/// Sizes take turns so often.
const REPETITIONS: usize = 9;
/// Keys are looked up in steps of this, so that they are not neighbours in memory. It shares no
/// factor with the sizes.
const STRIDE: u32 = 7_919;

type Key = Box<[u8]>;

struct Connection;

impl Occupant for Connection {
    fn is_idle(&self) -> bool {
        true
    }
}

/// For each size, in nanoseconds: an insert into a full pool, which evicts, and a look-up.
pub(crate) fn run() -> Result<(), Box<dyn Error>> {
    for size in [SIZES; REPETITIONS].as_flattened() {
        let mut pool = full(*size)?;
        let insert = time(|number| insert(&mut pool, size + number));
        let lookup = time(|number| {
            let key = key(INSERTS + number.wrapping_mul(STRIDE) % size);
            assert!(matches!(black_box(pool.lookup(&key)), Slot::Ready(_)), "pooled");
        });
        say(&format!("cost size={size} insert={insert:.2} lookup={lookup:.2}"))?;
    }
    Ok(())
}

/// A node id as in practice: 32 bytes.
fn key(number: u32) -> Key {
    let mut id = [0; 32];
    let hash = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
    id.iter_mut()
        .zip(hash.into_iter().chain(number.to_be_bytes()))
        .for_each(|(to, from)| *to = from);
    Box::new(id)
}

fn full(size: u32) -> Result<Pool<Key, (), Connection>, Box<dyn Error>> {
    let limit = NonZeroUsize::new(usize::try_from(size)?).ok_or("no pool is that small")?;
    let mut pool = Pool::new(limit);
    (0..size).for_each(|number| insert(&mut pool, number));
    Ok(pool)
}

fn insert(pool: &mut Pool<Key, (), Connection>, number: u32) {
    let key = key(number);
    let ticket = pool.begin(key.clone(), ());
    black_box(pool.admit(&key, ticket, Connection).is_ok());
}

fn time(mut work: impl FnMut(u32)) -> f64 {
    let begin = Instant::now();
    (0..INSERTS).for_each(&mut work);
    begin.elapsed().as_secs_f64() * 1e9 / f64::from(INSERTS)
}
