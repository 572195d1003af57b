%%% A v0.20.5 node on this bridge: its server keeps all handles and closes nothing, and still every
%%% request is answered once and every notification counted once.
-module(node_SUITE).

-include_lib("stdlib/include/assert.hrl").

-compile([export_all, nowarn_export_all]).

-define(CLIENTS, 20).
-define(REQUESTS_PER_CLIENT, 5_000).
-define(REQUESTS_PER_STREAM, 100).
%% Requests of one stream that wait for their answer at once.
-define(AHEAD, 20).
-define(NOTIFICATIONS, 100_000).
-define(WAIT_MS, 60_000).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [
        an_old_node_serves_everybody_once,
        an_old_sender_gets_its_credit_back_from_a_node_that_closes_nothing
    ].

init_per_suite(Config) -> quic_ct:certificates(Config).

end_per_suite(_Config) -> ok.

init_per_testcase(_Name, Config) ->
    ok = quic_ct:begin_test(),
    Config.

end_per_testcase(_Name, _Config) -> ok.

%% This is what a node does all day, and what its users pay for. Between two of ours, notifications
%% share a stream.
an_old_node_serves_everybody_once(_Config) ->
    {ok, Node} = old_node:start_link(?NOTIFICATIONS, []),
    Port = old_node:port(Node),
    Vm = start_vm(),
    ok = peer:call(Vm, ?MODULE, notify, [Port], ?WAIT_MS),
    Clients = [spawn_monitor(fun() -> run_client(Port, N) end) || N <- lists:seq(1, ?CLIENTS)],
    [?assertEqual(normal, ended(Client)) || Client <- Clients],
    Requests = ?CLIENTS * ?REQUESTS_PER_CLIENT,
    Counts = counted(Node, ?NOTIFICATIONS),
    {ok, Stats} = peer:call(Vm, macula_gateway_mesh, get_stats, [macula_gateway_mesh]),
    ct:pal("node: ~p~npool: ~p", [Counts, Stats]),
    ?assertMatch(#{requests := Requests, notifications := ?NOTIFICATIONS}, Counts),
    ?assertEqual(Requests div ?REQUESTS_PER_STREAM + 1, maps:get(streams, Counts)),
    Heard = [requests, notifications, connections, streams],
    ?assertEqual(#{}, maps:without(Heard, Counts)),
    ?assertEqual([], old_node:twice(Node)),
    ?assertMatch(#{messages_accepted := ?NOTIFICATIONS, messages_dropped := Dropped} when
        map_size(Dropped) =:= 0, Stats),
    ?assertMatch(#{connections_opened := 1, renewals := 0}, Stats),
    ok = old_node:stop(Node),
    ok = peer:stop(Vm).

%% Senders of the platform use a stream for each message, and refuse its other half at once. This
%% node finishes none; were credit to come back only then, the 101st message would never leave.
an_old_sender_gets_its_credit_back_from_a_node_that_closes_nothing(_Config) ->
    Messages = 10_000,
    {ok, Node} = old_node:start_link(Messages, []),
    Port = old_node:port(Node),
    {ok, Connection} = macula_quic:connect("127.0.0.1", Port, [{alpn, ["macula"]}], ?WAIT_MS),
    [send_old(Connection, notification(N)) || N <- lists:seq(1, Messages)],
    Expected = #{notifications => Messages, streams => Messages, connections => 1},
    ?assertEqual(Expected, counted(Node, Messages)),
    ok = macula_quic:close(Connection),
    ok = old_node:stop(Node).

%% FIN, and STOP_SENDING.
send_old(Connection, Message) ->
    {ok, Stream} = macula_quic:open_stream(Connection),
    ok = macula_quic:send(Stream, Message),
    ok = macula_quic:async_shutdown_stream(Stream, 1, 0),
    ok = macula_quic:async_shutdown_stream(Stream, 4, 0).

%%% The sender of notifications, in a VM of its own

start_vm() ->
    Options = #{connection => standard_io, args => ["-pa" | code:get_path()]},
    {ok, Vm, _Name} = peer:start_link(Options),
    Vm.

%% Run there: begins, and goes on by itself.
notify(Port) ->
    Address = {{127, 0, 0, 1}, Port},
    _ = spawn(fun() ->
        {ok, Pool} = macula_gateway_mesh:start_link(#{}),
        [send_one(Pool, Address, N) || N <- lists:seq(1, ?NOTIFICATIONS)],
        receive
        after infinity -> ok
        end
    end),
    ok.

%% A node does not know of queues; this one is polite enough not to overrun them.
send_one(Pool, Address, N) ->
    ok = macula_gateway_mesh:send_async(Pool, <<7:256>>, Address, notification(N)),
    N rem 1_000 =:= 0 andalso mesh_wait:eventually(true, fun() -> has_room(Pool) end).

has_room(Pool) ->
    {ok, #{outstanding_messages := Outstanding}} = macula_gateway_mesh:get_stats(Pool),
    Outstanding < 20_000.

notification(N) -> quic_ct:frame(1, <<N:64, (binary:copy(<<7>>, N rem 200))/binary>>).

%%% Clients

%% Several requests on each stream, some of them at once.
run_client(Port, Number) ->
    {ok, Connection} = macula_quic:connect("127.0.0.1", Port, [], ?WAIT_MS),
    [
        run_stream(Connection, [Number * 1_000_000 + First + I || I <- requests()])
     || First <- lists:seq(0, ?REQUESTS_PER_CLIENT - 1, ?REQUESTS_PER_STREAM)
    ],
    ok = macula_quic:close(Connection).

requests() -> lists:seq(1, ?REQUESTS_PER_STREAM).

run_stream(Connection, Ids) ->
    {ok, Stream} = macula_quic:open_stream(Connection),
    {First, Rest} = lists:split(?AHEAD, Ids),
    [ok = request(Stream, Id) || Id <- First],
    ok = exchange(Stream, Ids, Rest),
    {error, timeout} = macula_quic:recv(Stream, 0),
    ok = macula_quic:async_shutdown_stream(Stream, 1, 0).

%% The answers come in the order of the requests; each makes room for one more.
exchange(_Stream, [], []) ->
    ok;
exchange(Stream, [Id | Waiting], Rest) ->
    Expected = quic_ct:frame(3, payload(Id)),
    {ok, Expected} = macula_quic:recv(Stream, ?WAIT_MS),
    exchange(Stream, Waiting, request_next(Stream, Rest)).

request_next(_Stream, []) ->
    [];
request_next(Stream, [Id | Rest]) ->
    ok = request(Stream, Id),
    Rest.

request(Stream, Id) -> macula_quic:send(Stream, quic_ct:frame(2, payload(Id))).

payload(Id) -> <<Id:64, (binary:copy(<<7>>, Id rem 300))/binary>>.

ended({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, Reason} -> Reason
    after ?WAIT_MS -> error(still_running)
    end.

%% What the node has counted, once that is everything.
counted(Node, Notifications) ->
    mesh_wait:eventually(Notifications, fun() ->
        maps:get(notifications, old_node:counts(Node), 0)
    end),
    old_node:counts(Node).
