#!/usr/bin/env escript
%% -*- erlang -*-

%%% `make demo': eight peers, which are OS processes of their own, twelve node ids, and a pool that
%%% holds six connections. Every figure that it prints was counted or timed during this run.
%%%
%%% The exit code is 0 only when every message arrived once and whole at the peer it was sent to.
%%%
%%% The environment: MACULA_PEER names the peer program, ERL_LIBS leads to the application.
-mode(compile).

-define(PEERS, 8).
-define(NODES, 12).
-define(LIMIT, 6).
-define(ASYNC, 100_000).
-define(BY_STREAM, 5_000).
%% Messages are sent in this many blocks, each to a window of LIMIT nodes, which moves by one.
-define(BLOCKS, 20).
%% Bytes of fill in a message, behind 8 bytes of header and 8 of index.
-define(FILL, 240).
%% The silent peer's dial is given up after this.
-define(CONNECT_MS, 2_000).
%% An evicted connection has this long to get its queue out; some milliseconds are enough, but not
%% on a machine that is busy with other things.
-define(LINGER_MS, 5_000).
%% The sender waits while more than this is not acknowledged; the pool would take 65,536 a peer.
-define(MAX_OUTSTANDING, 8_000).
%% How often the sender looks at what is outstanding.
-define(BATCH, 500).
-define(POLL_MS, 1).
-define(ANSWER_MS, 5_000).
-define(WHOLE_RUN_MS, 18_000).
-define(TERMINAL_MS, 100).
-define(LOG_MS, 500).

main(_Args) ->
    _ = spawn_link(fun watchdog/0),
    ok = logger:set_primary_config(level, error),
    try run() of
        ok -> halt(0)
    catch
        throw:{failed, Word} -> fail(Word);
        Class:Reason:Stack -> fail(io_lib:format("~p", [{Class, Reason, Stack}]))
    end.

run() ->
    Started = now_ms(),
    Peers = start_peers(),
    {ok, Pool} = macula_gateway_mesh:start_link(#{
        max_mesh_connections => ?LIMIT, connect_timeout_ms => ?CONNECT_MS, linger_ms => ?LINGER_MS
    }),
    introduce(Peers),
    show_reuse_and_eviction(Pool, Peers),
    Silent = dial_a_silent_peer(Pool),
    Sent = send_messages(Pool, Peers),
    report_silent(await(Silent)),
    Rows = connections(Pool),
    Stats = stats(Pool),
    Arrived = [arrived(Peer, Sent) || Peer <- Peers],
    print_connections(Rows),
    print_stats(Stats),
    print_arrived(Arrived),
    ok = macula_gateway_mesh:stop(Pool),
    lists:foreach(fun stop_peer/1, Peers),
    conclude(Arrived, Stats, now_ms() - Started).

%%% What is shown

introduce(Peers) ->
    say("~b peers run as processes of their own on 127.0.0.1, ports ~ts.", [
        length(Peers), lists:join(", ", [integer_to_list(Port) || {_, _, Port} <- Peers])
    ]),
    say("The pool may hold ~b connections; there are ~b node ids, so some peers are two nodes.", [
        ?LIMIT, ?NODES
    ]),
    say("The peers' certificates are self-signed, and the pool does not verify them.~n", []).

%% Twelve nodes in turn, then the last six again: these are still there.
show_reuse_and_eviction(Pool, Peers) ->
    _ = [connect(Pool, Peers, Node) || Node <- lists:seq(1, ?NODES)],
    #{evictions := Evictions, dials := Dials} = stats(Pool),
    say("Connected to nodes 1 to ~b in turn: ~b dials, ~b evictions; in the pool are ~ts.", [
        ?NODES, Dials, Evictions, names([Node || {Node, _} <- connections(Pool)])
    ]),
    Last = lists:seq(?NODES - ?LIMIT + 1, ?NODES),
    {Us, _} = timer:tc(fun() -> [connect(Pool, Peers, Node) || Node <- Last] end),
    #{hits := Hits, dials := DialsNow} = stats(Pool),
    say("Asked again for nodes ~b to ~b: ~b found in the pool, ~b dials, ~b us for all.~n", [
        hd(Last), ?NODES, Hits, DialsNow - Dials, Us
    ]).

%% Somebody else asks for a peer that never answers; what is delivered until he hears is counted.
dial_a_silent_peer(Pool) ->
    say("One process asks for a peer that never answers; all others go on.", []),
    start(fun() ->
        {ok, Socket} = gen_udp:open(0, [{ip, {127, 0, 0, 1}}, {active, false}]),
        {ok, Port} = inet:port(Socket),
        #{messages_delivered := Before} = stats(Pool),
        {Us, Outcome} = timer:tc(fun() ->
            macula_gateway_mesh:get_or_create_connection(Pool, node_id(0), {{127, 0, 0, 1}, Port})
        end),
        #{messages_delivered := After} = stats(Pool),
        {Us, Outcome, After - Before}
    end).

report_silent({Us, {error, {connect_failed, timeout}}, Delivered}) when Delivered > 0 ->
    say("The silent peer's dial ended after ~.2f s, its deadline being ~b ms:", [
        Us / 1_000_000, ?CONNECT_MS
    ]),
    say("{error, {connect_failed, timeout}}. Meanwhile ~ts messages were delivered to others.~n", [
        number(Delivered)
    ]);
report_silent(Other) ->
    failed("the silent peer's dial was to time out beside others, but: ~p", [Other]).

%%% Sending

%% Returns how many messages went to each peer.
send_messages(Pool, Peers) ->
    Begin = now_ms(),
    Progress = start_progress(Pool),
    ByStream = start(fun() -> send_by_stream(Pool, Peers) end),
    ByAsync = send_by_async(Pool, Peers),
    Sent = add(ByAsync, await(ByStream)),
    ok = await_outstanding(Pool, 0),
    Ms = now_ms() - Begin,
    stop_progress(Progress),
    say("~ts messages by send_async/4 and ~ts by macula_quic:send/2, ~b bytes each,", [
        number(?ASYNC), number(?BY_STREAM), ?FILL + 16
    ]),
    say("all acknowledged after ~.2f s: ~ts messages per second.~n", [
        Ms / 1_000, number((?ASYNC + ?BY_STREAM) * 1_000 div max(1, Ms))
    ]),
    Sent.

%% Messages 0 to ASYNC - 1.
send_by_async(Pool, Peers) ->
    Fills = fills(),
    Send = fun(Index, Sent) ->
        Node = node_of(Index, ?ASYNC),
        ok = hold_back(Pool, Index),
        Frame = frame(Index, Fills),
        ok = macula_gateway_mesh:send_async(Pool, node_id(Node), address(Peers, Node), Frame),
        count(Node, Sent)
    end,
    lists:foldl(Send, #{}, lists:seq(0, ?ASYNC - 1)).

%% Messages ASYNC to ASYNC + BY_STREAM - 1, over the streams that the pool gives out.
send_by_stream(Pool, Peers) ->
    Fills = fills(),
    Send = fun(Index, Sent) ->
        Node = node_of(Index - ?ASYNC, ?BY_STREAM),
        ok = send_on_stream(Pool, Peers, Node, frame(Index, Fills)),
        count(Node, Sent)
    end,
    lists:foldl(Send, #{}, lists:seq(?ASYNC, ?ASYNC + ?BY_STREAM - 1)).

%% A stream may be evicted between the two calls: then nothing was taken, and there is a next one.
send_on_stream(Pool, Peers, Node, Frame) ->
    case macula_quic:send(connect(Pool, Peers, Node), Frame) of
        ok -> ok;
        {error, evicted} -> send_on_stream(Pool, Peers, Node, Frame);
        {error, Reason} -> failed("macula_quic:send/2: ~p", [Reason])
    end.

%% The blocks walk over the nodes, so that each block needs one that the pool does not hold.
node_of(Position, Total) ->
    Block = Position * ?BLOCKS div Total,
    1 + (Block + Position rem ?LIMIT) rem ?NODES.

%% send_async/4 never waits: who sends this much must look at what is outstanding.
hold_back(Pool, Index) when Index rem ?BATCH =:= 0 ->
    await_outstanding(Pool, ?MAX_OUTSTANDING);
hold_back(_Pool, _Index) ->
    ok.

await_outstanding(Pool, AtMost) ->
    await_outstanding(Pool, AtMost, now_ms() + ?ANSWER_MS).

await_outstanding(Pool, AtMost, Deadline) ->
    #{outstanding_messages := Outstanding} = stats(Pool),
    case Outstanding =< AtMost of
        true ->
            ok;
        false ->
            now_ms() < Deadline orelse
                failed("~b messages are still outstanding after ~b ms", [Outstanding, ?ANSWER_MS]),
            timer:sleep(?POLL_MS),
            await_outstanding(Pool, AtMost, Deadline)
    end.

connect(Pool, Peers, Node) ->
    Address = address(Peers, Node),
    case macula_gateway_mesh:get_or_create_connection(Pool, node_id(Node), Address) of
        {ok, Stream} -> Stream;
        {error, Reason} -> failed("node ~b: ~p", [Node, Reason])
    end.

stats(Pool) ->
    {ok, Stats} = macula_gateway_mesh:get_stats(Pool),
    Stats.

%% `[{Node, Info}]', the most recently used first.
connections(Pool) ->
    {ok, Connections} = macula_gateway_mesh:list_connections(Pool),
    [{Node, Info} || {<<Node:256>>, Info} <- Connections].

node_id(Node) -> <<Node:256>>.

address(Peers, Node) ->
    {_, _, Port} = lists:nth(peer_of(Node), Peers),
    {{127, 0, 0, 1}, Port}.

peer_of(Node) -> 1 + (Node - 1) rem ?PEERS.

count(Node, Sent) -> maps:update_with(peer_of(Node), fun(N) -> N + 1 end, 1, Sent).

add(A, B) ->
    Keys = maps:keys(maps:merge(A, B)),
    maps:from_list([{Key, maps:get(Key, A, 0) + maps:get(Key, B, 0)} || Key <- Keys]).

%% A frame of the mesh protocol that a peer can check: its index, then bytes that follow from it.
frame(Index, Fills) ->
    Fill = element(1 + Index band 255, Fills),
    <<1, 1, 0, 0, (8 + ?FILL):32, Index:64, Fill/binary>>.

fills() ->
    Fill = fun(First) -> << <<(First + I)>> || I <- lists:seq(0, ?FILL - 1) >> end,
    list_to_tuple([Fill(First) || First <- lists:seq(0, 255)]).

%%% Progress: a line that is overwritten on a terminal, else a line now and then.

start_progress(Pool) ->
    IsTerminal = is_terminal(),
    Interval =
        case IsTerminal of
            true -> ?TERMINAL_MS;
            false -> ?LOG_MS
        end,
    spawn_link(fun() -> progress(Pool, IsTerminal, Interval, now_ms(), delivered(Pool)) end).

stop_progress(Progress) ->
    Monitor = monitor(process, Progress),
    Progress ! stop,
    receive
        {'DOWN', Monitor, process, Progress, _} -> ok
    end.

progress(Pool, IsTerminal, Interval, Then, Before) ->
    receive
        stop when IsTerminal -> io:put_chars("\r\e[K");
        stop -> ok
    after Interval ->
        Now = now_ms(),
        #{messages_delivered := Delivered, outstanding_messages := Outstanding} = stats(Pool),
        Rate = (Delivered - Before) * 1_000 div max(1, Now - Then),
        Line = io_lib:format("  ~ts of ~ts delivered, ~ts outstanding, ~ts per second", [
            number(Delivered), number(?ASYNC + ?BY_STREAM), number(Outstanding), number(Rate)
        ]),
        put_line(IsTerminal, Line),
        progress(Pool, IsTerminal, Interval, Now, Delivered)
    end.

put_line(true, Line) -> io:put_chars(["\r", Line, "\e[K"]);
put_line(false, Line) -> io:put_chars([Line, "\n"]).

delivered(Pool) ->
    #{messages_delivered := Delivered} = stats(Pool),
    Delivered.

%% Asked of a child that shares our standard output.
is_terminal() ->
    Options = [{args, ["-c", "test -t 1"]}, nouse_stdio, exit_status],
    Port = open_port({spawn_executable, "/bin/sh"}, Options),
    receive
        {Port, {exit_status, Status}} -> Status =:= 0
    after ?ANSWER_MS ->
        false
    end.

%%% Tables

print_connections(Rows) ->
    say("The pool, the most recently used first (figures of the present connections):", []),
    print_table(
        ["node", "address", "state", "rtt us", "mtu", "sent KiB", "received KiB", "lost packets"],
        [connection_row(Row) || Row <- Rows]
    ).

connection_row({Node, Info}) ->
    #{address := {Ip, Port}, state := State, rtt_us := Rtt, mtu_bytes := Mtu} = Info,
    #{sent_bytes := Sent, received_bytes := Received, lost_packets := Lost} = Info,
    Address = [inet:ntoa(Ip), ":", integer_to_list(Port)],
    Figures = [Rtt, Mtu, Sent div 1_024, Received div 1_024, Lost],
    [name(Node), Address, atom_to_list(State) | numbers(Figures)].

print_stats(Stats) ->
    say("The pool's figures (get_stats/1):", []),
    Left = [size, limit, dials, connections_opened, dial_failures, evictions, closes, renewals],
    Right = [hits, misses] ++
        [messages_accepted, messages_delivered, messages_dropped, messages_unconfirmed] ++
        [outstanding_messages, bytes_delivered],
    print_table(
        ["connections", "", "requests and messages", ""],
        [stat(A, Stats) ++ stat(B, Stats) || {A, B} <- lists:zip(Left, Right)]
    ).

stat(Key, Stats) -> [atom_to_list(Key), figure(maps:get(Key, Stats))].

figure(Counts) when is_map(Counts), map_size(Counts) =:= 0 ->
    "none";
figure(Counts) when is_map(Counts) ->
    lists:join(", ", [[atom_to_list(Cause), " ", number(N)] || {Cause, N} <- maps:to_list(Counts)]);
figure(N) ->
    number(N).

print_arrived(Arrived) ->
    say("What the peers counted:", []),
    print_table(
        ["peer", "sent to it", "arrived", "distinct", "duplicates", "corrupt", "connections"],
        [arrived_row(Row) || Row <- Arrived]
    ).

arrived_row({Number, Sent, Seen}) ->
    Keys = [messages, distinct, duplicates, corrupt, connections_opened],
    [integer_to_list(Number) | numbers([Sent | [maps:get(Key, Seen) || Key <- Keys]])].

numbers(Ns) -> [number(N) || N <- Ns].

%% Numbers to the right, words to the left; every cell is a string.
print_table(Heads, Rows) ->
    Cells = [[lists:flatten(Cell) || Cell <- Row] || Row <- [Heads | Rows]],
    Widths = [lists:max([length(Cell) || Cell <- Column]) || Column <- transpose(Cells)],
    IsNumber = [lists:all(fun is_number_cell/1, Column) || Column <- transpose(tl(Cells))],
    lists:foreach(fun(Row) -> print_row(Row, Widths, IsNumber) end, Cells),
    say("", []).

print_row(Row, Widths, IsNumber) ->
    Padded = [pad(Cell, Width, Is) || {Cell, Width, Is} <- lists:zip3(Row, Widths, IsNumber)],
    io:put_chars(["  ", string:trim(lists:flatten(lists:join("  ", Padded)), trailing), "\n"]).

pad(Cell, Width, true) -> string:pad(Cell, Width, leading);
pad(Cell, Width, false) -> string:pad(Cell, Width, trailing).

is_number_cell(Cell) -> lists:all(fun(C) -> C =:= $, orelse (C >= $0 andalso C =< $9) end, Cell).

transpose([[] | _]) -> [];
transpose(Rows) -> [[hd(Row) || Row <- Rows] | transpose([tl(Row) || Row <- Rows])].

%% 1234567 as "1,234,567".
number(N) when N < 1_000 -> integer_to_list(N);
number(N) -> lists:flatten([number(N div 1_000), io_lib:format(",~3..0b", [N rem 1_000])]).

name(Node) -> "node " ++ integer_to_list(Node).

names(Nodes) -> lists:join(", ", [integer_to_list(Node) || Node <- lists:sort(Nodes)]).

%%% The verdict

conclude(Arrived, Stats, Ms) ->
    Total = ?ASYNC + ?BY_STREAM,
    #{messages_accepted := Accepted, messages_delivered := Delivered} = Stats,
    Wrong = [Number || {Number, Sent, Seen} <- Arrived, not is_complete(Sent, Seen)],
    Distinct = lists:sum([maps:get(distinct, Seen) || {_, _, Seen} <- Arrived]),
    case {Wrong, Distinct, Accepted, Delivered} of
        {[], Total, Total, Total} ->
            say("All ~ts messages arrived, each once and whole. ~.1f s in all.", [
                number(Total), Ms / 1_000
            ]);
        _ ->
            failed("sent ~b, accepted ~b, delivered ~b, arrived ~b; incomplete at peers ~w", [
                Total, Accepted, Delivered, Distinct, Wrong
            ])
    end.

is_complete(Sent, #{messages := Sent, distinct := Sent, duplicates := 0, corrupt := 0}) -> true;
is_complete(_Sent, _Seen) -> false.

%%% Peers: programs that answer each line on their standard input with one Erlang term, and that
%%% end when it closes.

%% `[{Number, Port, UdpPort}]'.
start_peers() ->
    Program = os:getenv("MACULA_PEER"),
    is_list(Program) andalso filelib:is_regular(Program) orelse
        failed("MACULA_PEER names no peer program; `make demo' sets it", []),
    Options = [{line, 4_096}, binary, exit_status, use_stdio],
    Ports = [open_port({spawn_executable, Program}, Options) || _ <- lists:seq(1, ?PEERS)],
    [{Number, Port, udp_port(Port)} || {Number, Port} <- lists:zip(lists:seq(1, ?PEERS), Ports)].

udp_port(Port) ->
    {ready, UdpPort} = answer(Port),
    UdpPort.

%% `{Number, Sent, Counters}', once everything is there or it has been given up.
arrived({Number, Port, _UdpPort}, Sent) ->
    Expected = maps:get(Number, Sent, 0),
    Line = io_lib:format("wait messages ~b ~b~n", [Expected, ?ANSWER_MS div 2]),
    true = port_command(Port, Line),
    {_StatsOrTimeout, Counters} = answer(Port),
    {Number, Expected, Counters}.

stop_peer({_Number, Port, _UdpPort}) ->
    true = port_command(Port, "quit\n"),
    ok = answer(Port),
    receive
        {Port, {exit_status, 0}} -> ok
    after ?ANSWER_MS ->
        failed("a peer does not end", [])
    end.

answer(Port) ->
    receive
        {Port, {data, {eol, Line}}} ->
            {ok, Tokens, _} = erl_scan:string(binary_to_list(Line)),
            {ok, Term} = erl_parse:parse_term(Tokens),
            Term;
        {Port, {exit_status, Status}} ->
            failed("a peer ended with ~b", [Status])
    after ?ANSWER_MS ->
        failed("a peer does not answer", [])
    end.

%%% Processes and ends

%% Runs `Fun' beside us; what it throws is ours.
start(Fun) ->
    Self = self(),
    spawn_monitor(fun() ->
        Result =
            try
                {ok, Fun()}
            catch
                throw:Thrown -> {thrown, Thrown}
            end,
        Self ! {self(), Result}
    end).

await({Pid, Monitor}) ->
    receive
        {Pid, {ok, Result}} ->
            demonitor(Monitor, [flush]),
            Result;
        {Pid, {thrown, Thrown}} ->
            throw(Thrown);
        {'DOWN', Monitor, process, Pid, Reason} ->
            failed("~p", [Reason])
    end.

%% Nothing here waits for ever.
watchdog() ->
    timer:sleep(?WHOLE_RUN_MS),
    fail("it took too long").

failed(Format, Args) ->
    throw({failed, io_lib:format(Format, Args)}).

fail(Word) ->
    io:format(standard_error, "~ndemo FAILED: ~ts~n", [Word]),
    halt(1).

say(Format, Args) -> io:format(Format ++ "~n", Args).

now_ms() -> erlang:monotonic_time(millisecond).
