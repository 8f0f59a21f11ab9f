//! futex(2): threads that wait for a word of memory to change. There is no host under the guest that could do it.

use std::collections::{BTreeMap, VecDeque};

use drupe_appkernel_abi::{Errno, Result};
use drupe_appkernel_core::platform::{SpaceId, ThreadId};
use drupe_appkernel_hostsys::clock;

use crate::area::{PROT_READ, PROT_WRITE};
use crate::memory::Memory;

const PRIVATE: u64 = 128;
const REALTIME: u64 = 256;
const WAIT: u64 = 0;
const WAKE: u64 = 1;
const REQUEUE: u64 = 3;
const CMP_REQUEUE: u64 = 4;
const WAKE_OP: u64 = 5;
const WAIT_BITSET: u64 = 9;
const WAKE_BITSET: u64 = 10;
const ANY: u32 = u32::MAX;

type Key = (u64, u64, u64);

struct Waiter {
    thread: ThreadId,
    bits: u32,
    deadline_ns: Option<u64>,
}

/// What a call comes to.
pub enum Answer {
    /// The caller waits.
    Wait,
    Value(i64),
    /// Not one of these: the kernel's business.
    Other,
}

/// Who waits for what.
#[derive(Default)]
pub struct Futexes {
    waiters: BTreeMap<Key, VecDeque<Waiter>>,
    /// Woken, and to go on with 0.
    pub woken: Vec<ThreadId>,
}

pub fn now_ns(realtime: bool) -> u64 {
    let (seconds, nanoseconds) = clock::now(if realtime { clock::REALTIME } else { clock::MONOTONIC });
    seconds as u64 * 1_000_000_000 + u64::from(nanoseconds)
}

/// Bytes of the guest's, all of them.
pub fn get(memory: &mut Memory, space: SpaceId, address: u64, out: &mut [u8]) -> Result<()> {
    let mut done = 0;
    while done < out.len() {
        let at = address.checked_add(done as u64).ok_or(Errno::FAULT)?;
        let size = (4096 - at as usize % 4096).min(out.len() - done);
        let (offset, file) = memory.find(space, at, PROT_READ).map_err(|_| Errno::FAULT)?;
        let arena = &memory.frames().arena;
        arena.read(offset, &mut out[done..done + size], file).map_err(|_| Errno::FAULT)?;
        done += size;
    }
    Ok(())
}

fn word(memory: &mut Memory, space: SpaceId, address: u64) -> Result<u32> {
    let mut bytes = [0; 4];
    get(memory, space, address, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

impl Futexes {
    pub fn call(&mut self, memory: &mut Memory, thread: ThreadId, space: SpaceId, args: &[u64; 6]) -> Answer {
        let command = args[1] & !(PRIVATE | REALTIME);
        let done = match command {
            _ if args[0] % 4 != 0 => Err(Errno::INVAL),
            WAIT | WAIT_BITSET => {
                return self
                    .wait(memory, thread, space, args)
                    .map_or_else(|e| Answer::Value(e.as_return()), |()| Answer::Wait)
            }
            WAKE => Ok(self.wake(memory.word_key(space, args[0], args[1] & PRIVATE != 0), args[2] as u32, ANY)),
            WAKE_BITSET if args[5] as u32 == 0 => Err(Errno::INVAL),
            WAKE_BITSET => {
                Ok(self.wake(memory.word_key(space, args[0], args[1] & PRIVATE != 0), args[2] as u32, args[5] as u32))
            }
            REQUEUE | CMP_REQUEUE => self.requeue(memory, space, args, command == CMP_REQUEUE),
            WAKE_OP => self.wake_op(memory, space, args),
            _ => return Answer::Other,
        };
        Answer::Value(done.unwrap_or_else(Errno::as_return))
    }

    fn wait(&mut self, memory: &mut Memory, thread: ThreadId, space: SpaceId, args: &[u64; 6]) -> Result<()> {
        let [address, op, expected, timeout, _, bits] = *args;
        let absolute = op & !(PRIVATE | REALTIME) == WAIT_BITSET;
        let bits = if absolute { bits as u32 } else { ANY };
        if bits == 0 {
            return Err(Errno::INVAL);
        }
        let deadline_ns = deadline(memory, space, timeout, absolute, op & REALTIME != 0)?;
        if word(memory, space, address)? != expected as u32 {
            return Err(Errno::AGAIN);
        }
        let key = memory.word_key(space, address, op & PRIVATE != 0);
        self.waiters.entry(key).or_default().push_back(Waiter { thread, bits, deadline_ns });
        Ok(())
    }

    pub fn wake(&mut self, key: Key, count: u32, bits: u32) -> i64 {
        let Some(waiters) = self.waiters.get_mut(&key) else { return 0 };
        let mut woken = 0;
        let mut at = 0;
        while at < waiters.len() && woken < count {
            match waiters[at].bits & bits {
                0 => at += 1,
                _ => {
                    self.woken.extend(waiters.remove(at).map(|waiter| waiter.thread));
                    woken += 1;
                }
            }
        }
        if waiters.is_empty() {
            self.waiters.remove(&key);
        }
        woken.into()
    }

    fn requeue(&mut self, memory: &mut Memory, space: SpaceId, args: &[u64; 6], compare: bool) -> Result<i64> {
        let [address, op, wake, more, other, expected] = *args;
        if (wake as i32) < 0 || (more as i32) < 0 {
            return Err(Errno::INVAL);
        }
        if compare && word(memory, space, address)? != expected as u32 {
            return Err(Errno::AGAIN);
        }
        let [from, to] = [address, other].map(|at| memory.word_key(space, at, op & PRIVATE != 0));
        let woken = self.wake(from, wake as u32, ANY);
        let Some(mut waiters) = self.waiters.remove(&from) else { return Ok(woken) };
        let moved = waiters.len().min(more as u32 as usize);
        let rest = waiters.split_off(moved);
        self.waiters.entry(to).or_default().extend(waiters);
        if !rest.is_empty() {
            let place = self.waiters.entry(from).or_default();
            rest.into_iter().rev().for_each(|waiter| place.push_front(waiter));
        }
        Ok(woken + if compare { moved as i64 } else { 0 })
    }

    /// Change the second word, wake some of the first, and some of the second if it was so (futex(2), FUTEX_WAKE_OP).
    fn wake_op(&mut self, memory: &mut Memory, space: SpaceId, args: &[u64; 6]) -> Result<i64> {
        let [address, op, first, second, other, code] = *args;
        if other % 4 != 0 {
            return Err(Errno::INVAL);
        }
        let (how, test) = (code as u32 >> 28, code as u32 >> 24 & 0xf);
        let signed = |value: u32| ((value << 20) as i32 >> 20) as u32;
        let (mut operand, against) = (signed(code as u32 >> 12 & 0xfff), signed(code as u32 & 0xfff));
        if how & 8 != 0 {
            operand = 1u32.wrapping_shl(operand);
        }
        let change = |old: u32| match how & 7 {
            0 => operand,
            1 => old.wrapping_add(operand),
            2 => old | operand,
            3 => old & !operand,
            _ => old ^ operand,
        };
        if how & 7 > 4 || test > 5 {
            return Err(Errno::NOSYS);
        }
        let (offset, file) = memory.find(space, other, PROT_WRITE).map_err(|_| Errno::FAULT)?;
        let old = match file {
            false => memory.frames().arena.update(offset, change).map_err(|_| Errno::FAULT)?,
            true => {
                let old = word(memory, space, other)?;
                let new = change(old).to_le_bytes();
                memory.frames().arena.write(offset, &new, true).map_err(|_| Errno::FAULT)?;
                old
            }
        };
        let (old, against) = (old as i32, against as i32);
        let holds = match test {
            0 => old == against,
            1 => old != against,
            2 => old < against,
            3 => old <= against,
            4 => old > against,
            _ => old >= against,
        };
        let [from, to] = [address, other].map(|at| memory.word_key(space, at, op & PRIVATE != 0));
        let woken = self.wake(from, first as u32, ANY);
        Ok(woken + if holds { self.wake(to, second as u32, ANY) } else { 0 })
    }

    /// It waits no more. Some(true): it had a time limit.
    pub fn remove(&mut self, thread: ThreadId) -> Option<bool> {
        let mut found = None;
        self.waiters.retain(|_, waiters| {
            if let Some(at) = waiters.iter().position(|waiter| waiter.thread == thread) {
                found = waiters.remove(at).map(|waiter| waiter.deadline_ns.is_some());
            }
            !waiters.is_empty()
        });
        found
    }

    /// Those whose time is over.
    pub fn expire(&mut self, now_ns: u64) -> Vec<ThreadId> {
        let late = |waiter: &&Waiter| waiter.deadline_ns.is_some_and(|deadline| deadline <= now_ns);
        let late: Vec<ThreadId> = self.waiters.values().flatten().filter(late).map(|waiter| waiter.thread).collect();
        for thread in &late {
            self.remove(*thread);
        }
        late
    }

    pub fn next_ns(&self) -> Option<u64> {
        self.waiters.values().flatten().filter_map(|waiter| waiter.deadline_ns).min()
    }
}

/// When a wait ends, on the monotonic clock.
fn deadline(memory: &mut Memory, space: SpaceId, at: u64, absolute: bool, realtime: bool) -> Result<Option<u64>> {
    if at == 0 {
        return Ok(None);
    }
    let mut bytes = [0; 16];
    get(memory, space, at, &mut bytes)?;
    let half = |from: usize| i64::from_le_bytes(bytes[from..from + 8].try_into().unwrap_or([0; 8]));
    let (seconds, nanoseconds) = (half(0), half(8));
    if seconds < 0 || !(0..1_000_000_000).contains(&nanoseconds) {
        return Err(Errno::INVAL);
    }
    let time = (seconds as u64).saturating_mul(1_000_000_000).saturating_add(nanoseconds as u64);
    let now = now_ns(false);
    let wait = match (absolute, realtime) {
        (false, _) => time,
        (true, realtime) => time.saturating_sub(now_ns(realtime)),
    };
    Ok(Some(now.saturating_add(wait)))
}
