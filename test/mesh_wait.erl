%%% Waiting for what must become true, with a deadline that only a failing test ever reaches.
-module(mesh_wait).

-export([eventually/2, eventually/3]).

-define(POLL_MS, 10).
%% Longer than anything takes on a busy machine.
-define(DEADLINE_MS, 20_000).

%% Waits until `Look()' is `Expected'; the error shows what it was instead.
eventually(Expected, Look) -> eventually(Expected, Look, ?DEADLINE_MS).

eventually(Expected, Look, Ms) -> poll(Expected, Look, now_ms() + Ms).

poll(Expected, Look, Deadline) ->
    case Look() of
        Expected -> ok;
        Actual -> poll_again(Expected, Actual, Look, Deadline, now_ms() < Deadline)
    end.

poll_again(Expected, Actual, _Look, _Deadline, false) ->
    error({never, Expected, Actual});
poll_again(Expected, _Actual, Look, Deadline, true) ->
    receive
    after ?POLL_MS -> poll(Expected, Look, Deadline)
    end.

now_ms() -> erlang:monotonic_time(millisecond).
