//! Extended processor state for a thread that has not run yet.

use crate::layout;
use crate::slot::Slot;

/// struct _fpx_sw_bytes, and the word that ends the state (arch/x86/include/uapi/asm/sigcontext.h).
const SOFTWARE: usize = 464;
const XSTATE_SIZE: usize = SOFTWARE + 16;
const MAGIC1: u32 = 0x4650_5853;
const MAGIC2: u32 = 0x4650_5845;
const UC_FP_XSTATE: u64 = 1;

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.first_chunk::<8>().map(|word| u64::from_le_bytes(*word))
}

impl Slot {
    /// Put state as `extended_state` gives it beside the frame that was made here. False: it is none, or has no room. The host
    /// checks it when the thread goes on, and takes what is no state for a clean one.
    #[must_use]
    pub fn adopt_state(&self, state: &[u8]) -> bool {
        self.adopt(state).is_some()
    }

    fn adopt(&self, state: &[u8]) -> Option<()> {
        let frame = self.frame()?;
        let magic = word(state, SOFTWARE)? as u32;
        let size = if magic == MAGIC1 { word(state, XSTATE_SIZE)? as u32 as usize } else { 512 };
        let fits = (512..=state.len()).contains(&size) && size % 8 == 0 && frame > layout::STACK;
        let at = frame.checked_sub(size + 128).filter(|at| fits && *at >= layout::STACK)? & !63;
        for offset in (0..size).step_by(8) {
            self.store(at + offset, word(state, offset)?);
        }
        self.store(at + size, MAGIC2.into());
        self.store(frame + layout::UC_FPSTATE, self.address + at as u64);
        self.store(frame, self.load(frame) | UC_FP_XSTATE);
        Some(())
    }
}
