//! Memory for small results.
//!
//! A call of a model on a few tokens makes hundreds of small tensors, and to ask CubeCL for each of them takes the thread
//! that launches kernels a microsecond. So they are parts of slabs: a slab is freed once all of its parts are.

use ::cubecl::client::ComputeClient;
use ::cubecl::device::{Device, DeviceId};
use ::cubecl::server::Handle;
use burn_cubecl::CubeRuntime;
use std::any::TypeId;
use std::cell::RefCell;

/// Bytes of a slab.
const SLAB: usize = 1 << 20;
/// Most bytes of a part.
const LARGEST: usize = 1 << 16;
/// Parts begin at multiples of so many bytes.
const ALIGNMENT: usize = 256;

/// The slab of which parts are taken.
struct Slab {
    runtime: TypeId,
    device: DeviceId,
    handle: Handle,
    /// Bytes that are taken.
    taken: usize,
}

thread_local! {
    /// Those of this thread, one for each device: CubeCL has a stream for each thread, and memory belongs to a stream.
    static SLABS: RefCell<Vec<Slab>> = const { RefCell::new(Vec::new()) };
}

/// Uninitialised memory.
pub(super) fn memory<R: CubeRuntime>(
    client: &ComputeClient<R>,
    device: &R::Device,
    bytes: usize,
) -> Handle {
    let wanted = bytes.next_multiple_of(ALIGNMENT);
    // Other devices would bind a whole slab for each tensor, of which they bind no buffer twice.
    if R::name(client) != "cuda" || !(1..=LARGEST).contains(&wanted) {
        return client.empty(bytes);
    }
    let (runtime, device) = (TypeId::of::<R>(), device.to_id());
    SLABS.with_borrow_mut(|slabs| {
        let same = |slab: &Slab| slab.runtime == runtime && slab.device == device;
        let at = match slabs.iter().position(same) {
            Some(at) => at,
            None => {
                slabs.push(Slab {
                    runtime,
                    device,
                    handle: client.empty(SLAB),
                    taken: 0,
                });
                slabs.len() - 1
            }
        };
        let slab = &mut slabs[at];
        if slab.taken + wanted > SLAB {
            slab.handle = client.empty(SLAB);
            slab.taken = 0;
        }
        let start = slab.taken;
        slab.taken += wanted;
        let [start, rest] = [start, SLAB - start - bytes].map(|n| n as u64);
        slab.handle.clone().offset_start(start).offset_end(rest)
    })
}
