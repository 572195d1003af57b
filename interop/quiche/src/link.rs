//! One connection and its streams. quiche does no I/O and calls nobody: after each packet and each
//! timeout, all streams are asked what is new.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use lines::{Args, Batch, Coded, Counter, Inbox, Outcome, STREAMS_AT_ONCE, Tally};
use quiche::{Connection, Error, Shutdown};

use crate::node::Answer;

/// The bits of a stream's number that say who has opened it, and whether only he sends (RFC 9000,
/// section 2.1), and the distance of two numbers of one kind.
const OPENED_BY_SERVER: u64 = 1;
const UNIDIRECTIONAL: u64 = 2;
const KINDS: u64 = 4;
/// Bytes read from a stream at once.
const READ_BYTES: usize = 65_536;

/// A connection.
pub(crate) struct Link {
    pub(crate) quic: Connection,
    args: Args,
    tally: Arc<Tally>,
    streams: HashMap<u64, Flow>,
    newest: Option<u64>,
    opened: u64,
    batch: Option<Sending>,
    is_open: bool,
    is_over: bool,
}

/// A stream.
struct Flow {
    inbox: Inbox,
    outgoing: VecDeque<Vec<u8>>,
    /// FIN comes after the last of them.
    finishes: bool,
    /// Nothing more is to be sent.
    is_sent: bool,
    is_read: bool,
    /// Written one at a time, with a pause between.
    is_paced: bool,
    in_batch: bool,
}

/// A batch under way.
struct Sending {
    batch: Batch,
    waiting: VecDeque<Vec<Vec<u8>>>,
    under_way: usize,
    paced_at: Instant,
    answer: Answer<()>,
}

impl Link {
    pub(crate) fn new(quic: Connection, args: Args, tally: Arc<Tally>) -> Self {
        Self {
            quic,
            args,
            tally,
            streams: HashMap::new(),
            newest: None,
            opened: 0,
            batch: None,
            is_open: false,
            is_over: false,
        }
    }

    /// Whether it has nothing more to say or to hear.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Whether the handshake has just been completed.
    pub(crate) fn has_opened(&mut self) -> bool {
        let has_opened = !self.is_open && self.quic.is_established();
        if has_opened {
            self.is_open = true;
            self.tally.count(Counter::ConnectionsOpened);
        }
        has_opened
    }

    /// Does what packets, time and the other end have made possible.
    pub(crate) fn attend(&mut self) {
        if self.quic.is_closed() {
            self.end();
            return;
        }
        self.note_stops();
        let readable: Vec<u64> = self.quic.readable().collect();
        for id in readable {
            self.read(id);
        }
        self.feed_batch();
        self.write();
    }

    /// A stream of ours.
    pub(crate) fn open(&mut self, writes: Vec<Vec<u8>>) -> Outcome {
        if self.quic.peer_streams_left_bidi() == 0 {
            return Err("no stream credit".to_owned());
        }
        self.start(writes, false, false, false);
        Ok(())
    }

    pub(crate) fn send(&mut self, batch: Batch, answer: Answer<()>) {
        let mut batch = batch;
        let waiting = std::mem::take(&mut batch.streams).into();
        let paced_at = Instant::now();
        self.batch = Some(Sending { batch, waiting, under_way: 0, paced_at, answer });
    }

    pub(crate) fn shut_down(&mut self, direction: Shutdown, code: u64) -> Outcome {
        let id = self.newest.ok_or("no stream")?;
        if let Some(flow) = self.streams.get_mut(&id) {
            match direction {
                Shutdown::Write => flow.is_sent = true,
                Shutdown::Read => flow.is_read = true,
            }
        }
        self.quic.stream_shutdown(id, direction, code).map_err(said)
    }

    fn start(&mut self, writes: Vec<Vec<u8>>, finishes: bool, is_paced: bool, in_batch: bool) {
        let own = if self.quic.is_server() { OPENED_BY_SERVER } else { 0 };
        let id = KINDS * self.opened + own;
        self.opened += 1;
        self.newest = Some(id);
        let flow = Flow {
            inbox: Inbox::new(self.tally.clone(), self.args.has_old_habit() && !in_batch),
            outgoing: writes.into(),
            finishes,
            is_sent: false,
            is_read: false,
            is_paced,
            in_batch,
        };
        self.streams.insert(id, flow);
    }

    /// Opens as many streams of the batch as there is credit and room for; answers at its end.
    fn feed_batch(&mut self) {
        let Some(mut sending) = self.batch.take() else { return };
        while sending.under_way < STREAMS_AT_ONCE
            && self.quic.peer_streams_left_bidi() > 0
            && let Some(writes) = sending.waiting.pop_front()
        {
            sending.under_way += 1;
            self.start(writes, true, !sending.batch.pause.is_zero(), true);
            // Its credit is used up by the first bytes.
            self.write();
        }
        if sending.under_way == 0 && sending.waiting.is_empty() {
            sending.answer.give(Ok(()));
        } else {
            self.batch = Some(sending);
        }
    }

    /// quiche tells of STOP_SENDING only who asks how much he may send.
    fn note_stops(&mut self) {
        let writable: Vec<u64> = self.quic.writable().collect();
        for id in writable {
            if let Err(Error::StreamStopped(code)) = self.quic.stream_capacity(id)
                && let Some(flow) = self.streams.get_mut(&id)
                && !flow.is_sent
            {
                self.tally.count_code(Coded::Stop, code);
                flow.outgoing.clear();
                flow.is_sent = true;
            }
        }
    }

    fn read(&mut self, id: u64) {
        let own = if self.quic.is_server() { OPENED_BY_SERVER } else { 0 };
        let is_ours = id & OPENED_BY_SERVER == own;
        if !is_ours && !self.streams.contains_key(&id) {
            self.tally.count(Counter::Streams);
            self.newest = Some(id);
            let flow = Flow {
                inbox: Inbox::new(self.tally.clone(), self.args.has_old_habit()),
                outgoing: VecDeque::new(),
                finishes: false,
                is_sent: id & UNIDIRECTIONAL != 0,
                is_read: false,
                is_paced: false,
                in_batch: false,
            };
            self.streams.insert(id, flow);
        }
        let mut chunk = vec![0; READ_BYTES];
        loop {
            let received = self.quic.stream_recv(id, &mut chunk);
            let Some(flow) = self.streams.get_mut(&id).filter(|flow| !flow.is_read) else { return };
            let is_end = match received {
                Ok((0, false)) => return,
                Ok((length, is_end)) => {
                    let data = chunk.get(..length).unwrap_or_default();
                    flow.inbox.take(data);
                    if !is_ours && self.args.is_echo() && !flow.is_sent && length > 0 {
                        flow.outgoing.push_back(data.to_vec());
                    }
                    if is_end {
                        flow.inbox.finish();
                    }
                    is_end
                }
                Err(Error::StreamReset(code)) => {
                    self.tally.count_code(Coded::Reset, code);
                    true
                }
                Err(_) => return,
            };
            if is_end {
                flow.is_read = true;
                // The other end's streams are answered to the end.
                flow.finishes |= !is_ours;
                if flow.in_batch {
                    self.batch.iter_mut().for_each(|sending| sending.under_way -= 1);
                }
                return;
            }
        }
    }

    /// Hands to quiche what it takes.
    fn write(&mut self) {
        let may_pace = match &mut self.batch {
            Some(sending) if sending.paced_at.elapsed() >= sending.batch.pause => {
                sending.paced_at = Instant::now();
                true
            }
            _ => false,
        };
        for (id, flow) in &mut self.streams {
            while !flow.is_sent && (may_pace || !flow.is_paced) {
                let Some(mut data) = flow.outgoing.pop_front() else {
                    if flow.finishes {
                        flow.is_sent = self.quic.stream_send(*id, &[], true).is_ok();
                    }
                    break;
                };
                let is_last = flow.finishes && flow.outgoing.is_empty();
                let taken = self.quic.stream_send(*id, &data, is_last).unwrap_or_default();
                if taken < data.len() {
                    flow.outgoing.push_front(data.split_off(taken));
                    break;
                }
                flow.is_sent = is_last;
                if flow.is_paced {
                    break;
                }
            }
        }
        self.streams.retain(|_, flow| !(flow.is_sent && flow.is_read));
    }

    fn end(&mut self) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        if self.quic.is_timed_out() {
            self.tally.count(Counter::ClosedByTimeout);
        }
        if let Some(error) = self.quic.peer_error()
            && error.is_app
        {
            self.tally.count_code(Coded::Close, error.error_code);
        }
        self.tally.count(Counter::ConnectionsClosed);
        if let Some(sending) = self.batch.take() {
            sending.answer.give(Err("the connection has ended".to_owned()));
        }
    }
}

pub(crate) fn said(error: Error) -> String {
    error.to_string()
}
