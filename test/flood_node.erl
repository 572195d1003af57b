%%% A node that is flooded, in a VM of its own, so that its memory can be read from outside. It
%%% listens, reads and answers as a careful handler does: each frame comes back on its stream, and a
%%% stream that its peer has given up or finished is closed and forgotten. Streams from a
%%% neglected address are not read: this handler is busy elsewhere.
-module(flood_node).

-export([with/2, memory/1, peak/1, forget_peak/1, stats/1]).
-export([run/2, port/0, listener_stats/0]).

-define(CALL_MS, 60_000).
-define(LOOPBACK, {127, 0, 0, 1}).

%%% For the test

%% Runs `Test(Vm, Port)' with another VM whose node listens with these options.
with(Options, Test) ->
    Paths = [filename:dirname(code:which(Module)) || Module <- [macula_quic, ?MODULE]],
    Args = lists:append([["-pa", Path] || Path <- Paths]),
    {ok, Vm, _} = peer:start_link(#{connection => standard_io, args => Args}),
    try
        ok = peer:call(Vm, ?MODULE, run, [quic_ct:server_options(), Options], ?CALL_MS),
        Test(Vm, peer:call(Vm, ?MODULE, port, [], ?CALL_MS))
    after
        peer:stop(Vm)
    end.

%% What the VM has in memory now, in bytes, and the most since forget_peak/1.
memory(Vm) -> status(Vm, "VmRSS").

peak(Vm) -> status(Vm, "VmHWM").

forget_peak(Vm) ->
    %% Forgets the "high water mark", VmHWM (proc(5)).
    file:write_file(process(Vm) ++ "/clear_refs", "5").

stats(Vm) -> peer:call(Vm, ?MODULE, listener_stats, [], ?CALL_MS).

process(Vm) -> "/proc/" ++ peer:call(Vm, os, getpid, [], ?CALL_MS).

status(Vm, Field) ->
    {ok, Status} = file:read_file(process(Vm) ++ "/status"),
    {match, [Kib]} = re:run(Status, Field ++ ":\\s+(\\d+) kB", [{capture, [1], list}]),
    list_to_integer(Kib) * 1_024.

%%% In the other VM

run(Identity, #{options := Options} = Node) ->
    Caller = self(),
    Neglected = maps:get(neglected, Node, none),
    {Pid, Monitor} = spawn_monitor(fun() ->
        true = register(?MODULE, self()),
        {ok, Listener} = macula_quic:listen({?LOOPBACK, 0}, Identity ++ Options),
        persistent_term:put(?MODULE, Listener),
        {ok, _} = macula_quic:async_accept(Listener, []),
        Caller ! {?MODULE, listening},
        serve(Listener, Neglected)
    end),
    receive
        {?MODULE, listening} ->
            _ = demonitor(Monitor, [flush]),
            ok;
        {'DOWN', Monitor, process, Pid, Reason} ->
            error(Reason)
    end.

port() ->
    {ok, {_, Port}} = macula_quic:sockname(persistent_term:get(?MODULE)),
    Port.

listener_stats() -> macula_quic:listener_stats(persistent_term:get(?MODULE)).

serve(Listener, Neglected) ->
    receive
        {quic, new_conn, Connection, _Facts} ->
            _ = macula_quic:async_accept_stream(Connection, []),
            {ok, _} = macula_quic:async_accept(Listener, []);
        {quic, new_stream, Stream, #{conn := Connection}} ->
            _ = macula_quic:async_accept_stream(Connection, []),
            begin_stream(Stream, Neglected);
        {quic, Frame, Stream, _} when is_binary(Frame) ->
            %% Who does not take its answers loses them.
            _ = macula_quic:async_send(Stream, Frame);
        {quic, What, Stream, _} when
            What =:= peer_send_shutdown;
            What =:= peer_send_aborted;
            What =:= peer_receive_aborted;
            What =:= frame_too_large
        ->
            ok = macula_quic:close(Stream);
        {quic, _, _, _} ->
            ok
    end,
    serve(Listener, Neglected).

begin_stream(Stream, Neglected) ->
    case macula_quic:peername(Stream) of
        %% Held, for as long as this process lives, and not read.
        {ok, {Neglected, _}} -> put(Stream, neglected);
        {ok, _} -> _ = macula_quic:setopt(Stream, active, true)
    end.
