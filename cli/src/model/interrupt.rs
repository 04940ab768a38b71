//! Ctrl-C: the first one asks running work to stop, the next one ends the process.
//!
//! Invariant: as long as no command listens, Ctrl-C ends the process at once, as it does without
//! this module. So it does while weights are loaded.

use crate::failure::{Failure, INTERRUPTED};
use signal_hook::consts::SIGINT;
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

/// Whether Ctrl-C was pressed since [`Interrupt::begin`].
static ASKED: AtomicBool = AtomicBool::new(false);
/// Whether the next Ctrl-C ends the process.
static ENDS: AtomicBool = AtomicBool::new(false);

/// Proof that this process listens for Ctrl-C.
#[derive(Clone, Copy, Debug)]
pub(super) struct Interrupt(());

impl Interrupt {
    /// Listens from now on.
    pub(super) fn listen() -> Result<Self, Failure> {
        let listen = || {
            // Actions run in this order: the end is that of the Ctrl-C after the first.
            flag::register_conditional_shutdown(SIGINT, INTERRUPTED.into(), &ENDS)?;
            flag::register(SIGINT, &ENDS)?;
            flag::register(SIGINT, &ASKED)
        };
        let listening = listen().map(|_| Self(()));
        listening.map_err(|error| Failure::Bad(format!("cannot listen for Ctrl-C: {error}")))
    }

    /// Begins work that asks [`asked`](Self::asked) now and then. An earlier Ctrl-C is forgotten.
    pub(super) fn begin(self) {
        ENDS.store(false, SeqCst);
        ASKED.store(false, SeqCst);
    }

    /// Begins to wait for something that cannot be interrupted: Ctrl-C ends the process.
    pub(super) fn wait(self) {
        ENDS.store(true, SeqCst);
    }

    /// Whether the work is to stop.
    pub(super) fn asked(self) -> bool {
        ASKED.load(SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The signals are real; only this test of the process raises them.
    #[test]
    fn a_signal_asks_once_for_each_work() {
        let interrupt = Interrupt::listen().expect("listens");
        interrupt.begin();
        assert!(!interrupt.asked());
        signal_hook::low_level::raise(SIGINT).expect("raised");
        assert!(interrupt.asked() && ENDS.load(SeqCst));
        interrupt.begin();
        assert!(!interrupt.asked() && !ENDS.load(SeqCst));
        interrupt.wait();
        assert!(!interrupt.asked() && ENDS.load(SeqCst));
    }
}
