%%% Peers of the tests: separate OS processes, built from native/mesh/examples/peer.
-module(mesh_peer).

-export([start/0, start/1, stop/1, kill/1, pause/1, resume/1]).
-export([command/2, port/1, address/1]).
-export([stats/1, wait/3, wait/4, node_id/1, frame/2, silent/0]).

-export_type([peer/0]).

-type peer() :: mesh_program:program().

%% An ordinary peer: it counts what it gets.
start() -> start([]).

%% `Args' are those of the peer program, as strings.
start(Args) ->
    mesh_program:start(mesh_program:peer(), Args).

%% Ends in order: closes its connections, then exits, though it may stand still or be gone already.
stop(Peer) ->
    mesh_program:stop(Peer).

%% Ends as a power cut would: nobody is told.
kill(Peer) ->
    mesh_program:kill(Peer).

%% A peer that stands still answers nothing, and what is sent to it waits in its socket.
pause(Peer) -> mesh_program:pause(mesh_program:os_pid(Peer)).

resume(Peer) -> mesh_program:resume(mesh_program:os_pid(Peer)).

port(Peer) -> mesh_program:port(Peer).

address(Peer) -> {{127, 0, 0, 1}, port(Peer)}.

%% The peer's answer to one command line.
command(Peer, Line) ->
    mesh_program:command(Peer, Line).

stats(Peer) ->
    {stats, Stats} = command(Peer, "stats"),
    Stats.

%% Waits until counter `Field' is at least `Least', and returns all counters.
wait(Peer, Field, Least) -> wait(Peer, Field, Least, 30_000).

wait(Peer, Field, Least, Ms) ->
    case command(Peer, io_lib:format("wait ~s ~b ~b", [Field, Least, Ms])) of
        {stats, Stats} -> Stats;
        {timeout, Stats} -> error({never_reached, Field, Least, Stats})
    end.

%% A node id of 32 bytes, as in the field.
node_id(N) -> <<N:256>>.

%% A protocol frame whose payload has `Size' bytes (8 at least), which a peer can check: its index,
%% then bytes that follow from it.
frame(Index, Size) when Size >= 8 ->
    Cycle = list_to_binary([(Index + I) band 255 || I <- lists:seq(0, 255)]),
    Fill = Size - 8,
    Filling = binary:part(binary:copy(Cycle, Fill div 256 + 1), 0, Fill),
    <<1, 1, 0, 0, Size:32, Index:64, Filling/binary>>.

%% A socket that never answers, and its address; it closes with the calling process.
silent() ->
    {ok, Socket} = gen_udp:open(0, [binary, {ip, {127, 0, 0, 1}}, {active, false}]),
    {ok, Port} = inet:port(Socket),
    {{127, 0, 0, 1}, Port}.
